"""A training step with each regulariser against a plain one. Measures time and size, not accuracy.

    python -m benchmarks.regularizers --glue_dir DIR

MiniLM in fp32 on packed micro-batches of GLUE's dev rows, with the encoder's dropout and torch.optim.AdamW. A
step is one micro-batch: every pass of it forward and backward, and the update. The sides have weights of
their own, take the same batches and take turns (A B ..., ... B A), so a machine that slows down slows all.
Batches are made before timing; noise is drawn inside.
"""

from __future__ import annotations

import json
import statistics

import torch
from torch import Tensor

from benchmarks.sides import (
    MINILM,
    Side,
    add_batch_flags,
    make_batches,
    measure,
    median_ratio,
    parser_for,
)
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

    def loss(index: int) -> Tensor:
        """The last pass's share of the objective; those before it have gone backward."""
        batch, objective = batches[index], torch.zeros(())
        num_passes, passes = 1, iter([PLAIN])
        if regularizer is not None:
            num_passes, passes = regularizer.num_passes, iter(regularizer.passes(batch, batch, index))

        for number, one in enumerate(passes, start=1):
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
    parser = parser_for(__doc__)
    add_batch_flags(
        parser,
        tasks="cola,sst2,mrpc,stsb,mnli,qnli,rte",
        batch=16,
        steps=4,
        threads=torch.get_num_threads(),
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()

    batches, specs = make_batches(arguments, resolve_encoder_path(MINILM))
    added: dict[str, list[float]] = {name: [] for name in SIDES}
    sides = [make_side(name, settings, specs, batches, added) for name, settings in SIDES.items()]

    cpu = torch.device("cpu")
    seconds = measure(sides, arguments.steps, warmup=2, repeats=arguments.repeats, device=cpu).wall
    ratios = {name: median_ratio(values, seconds["plain"]) for name, values in seconds.items()}

    print(f"{'':20}{'ms/step':>10}{'ratio':>8}{'term/example':>14}")
    for name, values in seconds.items():
        term = f"{statistics.median(added[name]):14.2e}" if added[name] else ""
        print(f"{name:20}{1000 * statistics.median(values) / arguments.steps:10.1f}{ratios[name]:8.2f}{term}")
    print(json.dumps({name: round(ratio, 3) for name, ratio in ratios.items()}))


if __name__ == "__main__":
    main()
