"""A training step with each regulariser against a plain one, all in one run. Measures time and the size of the added term, not accuracy.

    python -m benchmarks.regularizers --glue_dir DIR

MiniLM in fp32 on packed micro-batches of GLUE's dev rows, with the encoder's dropout and torch.optim.AdamW. A step is one micro-batch:
every pass of it forward and backward, and the update. The sides have weights of their own, take the same batches and take turns (A B ...,
... B A), so a machine that slows down slows all. Batches are made before timing; noise is drawn inside.
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch
from torch import Tensor

from benchmarks.throughput import MINILM, Side, make_batches, measure
from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.config.encoder_path import resolve_encoder_path
from mtdnn_ds.config.recipe import RegularizerSettings
from mtdnn_ds.losses.forms import build_losses
from mtdnn_ds.model.multitask import build_model
from mtdnn_ds.runs.device import keep_freed_memory
from mtdnn_ds.tasks.layout import head_layout
from mtdnn_ds.tasks.spec import TaskSpec
from mtdnn_ds.train.regularizers.regularizer import PLAIN, build_regularizer, mean_losses

SIDES = {
    "plain": RegularizerSettings(),
    "smart": RegularizerSettings(name="smart"),
    "smart+proximal": RegularizerSettings(name="smart", proximal_factor=1.0),
    "freelb, 2 passes": RegularizerSettings(name="freelb", ascent_steps=2),
    "freelb, 3 passes": RegularizerSettings(name="freelb"),
    "r_drop": RegularizerSettings(name="r_drop"),
}


def make_side(
    name: str,
    settings: RegularizerSettings,
    specs: tuple[TaskSpec, ...],
    batches: list[PackedBatch],
    added: dict[str, list[float]],
) -> Side:
    """`added` gets what the regulariser adds to the mean loss of each batch."""
    layout, cpu = head_layout(specs), torch.device("cpu")
    model = build_model(encoder_path=resolve_encoder_path(MINILM), specs=specs, layout=layout)
    losses = build_losses(layout, specs, cpu)
    regularizer, _ = build_regularizer(
        settings, model, specs=specs, layout=layout, seed=0, compute_dtype=torch.float32, device=cpu
    )

    num_passes = 1 if regularizer is None else regularizer.num_passes

    def loss(index: int) -> Tensor:
        """The last pass's share of the objective; those before it have gone backward."""
        batch, objective = batches[index], torch.zeros(())
        for number, one in enumerate(
            [PLAIN] if regularizer is None else regularizer.passes(batch, batch, index), start=1
        ):
            outputs, added_M = model(batch, within=one.within)
            total = losses.sums(mean_losses(losses, outputs, batch.targets)).total.sum()
            if added_M is not None:
                total = total + added_M.sum()
                added[name].append(added_M.sum().item() / batch.num_sequences)
            objective = total * one.share / batch.num_sequences
            if number == num_passes:
                break
            objective.backward()
        return objective

    return Side(name=name, loss=loss, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-5))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--glue_dir", required=True, help="folder in the official GLUE layout")
    parser.add_argument(
        "--tasks", default="cola,sst2,mrpc,stsb,mnli,qnli,rte", help="names, separated by commas"
    )
    parser.add_argument("--batch", type=int, default=16, help="examples per step")
    parser.add_argument(
        "--steps", type=int, default=4, help="different batches, each trained on once per repeat"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of torch")
    parser.add_argument("--cache_dir", default=".cache/mtdnn_ds")
    parser.set_defaults(max_length=128, seed=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    batches, specs = make_batches(arguments, resolve_encoder_path(MINILM))
    added: dict[str, list[float]] = {name: [] for name in SIDES}
    sides = [make_side(name, settings, specs, batches, added) for name, settings in SIDES.items()]
    seconds = measure(sides, arguments.steps, warmup=2, repeats=arguments.repeats, device=torch.device("cpu"))
    # Each repeat's own ratio: the sides of a repeat ran next to each other.
    ratios = {
        name: statistics.median(own / plain for own, plain in zip(values, seconds["plain"], strict=True))
        for name, values in seconds.items()
    }
    print(f"{'':20}{'ms/step':>10}{'ratio':>8}{'term/example':>14}")
    for name, values in seconds.items():
        term = f"{statistics.median(added[name]):14.2e}" if added[name] else ""
        print(f"{name:20}{1000 * statistics.median(values) / arguments.steps:10.1f}{ratios[name]:8.2f}{term}")
    print(json.dumps({name: round(ratio, 3) for name, ratio in ratios.items()}))


if __name__ == "__main__":
    main()
