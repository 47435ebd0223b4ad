"""A training step with dropout masks from counters against the default mode and against none, all in one run. Measures time, not accuracy.

    python -m benchmarks.dropout --glue_dir DIR [--encoder minilm | bert_large:LAYERS | FOLDER] [--dtype fp32 | bf16]

A step is one packed micro-batch of GLUE's dev rows: forward, backward and torch.optim.AdamW. The sides begin with the same weights,
take the same batches and take turns (A B ..., ... B A), so a machine that slows down slows all. Batches are made before timing. On CPUs
the ratio is one of CPU seconds of the whole process, which other programs on the machine disturb less than seconds on the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.throughput import DTYPES, MINILM, Side, encoder_folder, make_batches, packed_loss, wait_for
from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.config.encoder_path import resolve_encoder_path
from mtdnn_ds.losses.forms import build_losses
from mtdnn_ds.model.dropout.word_dropout import DropoutMode
from mtdnn_ds.model.multitask import build_model
from mtdnn_ds.runs.device import keep_freed_memory
from mtdnn_ds.tasks.layout import head_layout
from mtdnn_ds.tasks.spec import TaskSpec

MODES: tuple[DropoutMode, ...] = ("none", "model", "counter")


def make_side(
    mode: DropoutMode,
    folder: str,
    specs: tuple[TaskSpec, ...],
    batches: list[PackedBatch],
    dtype: torch.dtype,
    device: torch.device,
) -> Side:
    layout = head_layout(specs)
    model = build_model(
        encoder_path=folder,
        specs=specs,
        layout=layout,
        device_type=device.type,
        compute_dtype=dtype,
        parameter_dtype=dtype,
        dropout=mode,
    ).to(device)
    losses = build_losses(layout, specs, device)

    def loss(index: int) -> Tensor:
        return packed_loss(model, batches[index], losses)

    return Side(name=mode, loss=loss, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-5))


def measure(
    sides: list[Side], num_batches: int, *, repeats: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of all batches once, for each side and repeat: on the clock, and of all CPU threads of this process."""
    clock: dict[str, list[float]] = {side.name: [] for side in sides}
    cpu: dict[str, list[float]] = {side.name: [] for side in sides}
    for repeat in range(-1, repeats):  # the first warms up
        for side in sides if repeat % 2 == 0 else reversed(sides):
            wait_for(device)
            begin, begin_cpu = time.perf_counter(), time.process_time()
            for index in range(num_batches):
                side.step(index)
            wait_for(device)
            if repeat >= 0:
                clock[side.name].append(time.perf_counter() - begin)
                cpu[side.name].append(time.process_time() - begin_cpu)
    return clock, cpu


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--glue_dir", required=True, help="folder in the official GLUE layout")
    parser.add_argument(
        "--tasks", default="cola,sst2,mrpc,stsb,mnli,qnli,rte", help="names, separated by commas"
    )
    parser.add_argument(
        "--encoder",
        default="minilm",
        help="minilm, bert_large:LAYERS (random weights), or a folder with a BERT",
    )
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--batch", type=int, default=16, help="examples per step")
    parser.add_argument(
        "--steps", type=int, default=4, help="different batches, each trained on once per repeat"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max_length", type=int, default=128, help="tokens")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--cache_dir", default=".cache/mtdnn_ds")
    parser.set_defaults(seed=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not torch.cuda.is_available():
        keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    is_file_less = arguments.encoder == "minilm" or arguments.encoder.startswith("bert_large:")
    batches, specs = make_batches(
        arguments, resolve_encoder_path(MINILM if is_file_less else arguments.encoder)
    )
    batches = [batch.to(device) for batch in batches]
    with tempfile.TemporaryDirectory() as scratch:
        folder = encoder_folder(arguments.encoder, Path(scratch), arguments.seed)
        sides = [make_side(mode, folder, specs, batches, DTYPES[arguments.dtype], device) for mode in MODES]
    clock, cpu = measure(sides, arguments.steps, repeats=arguments.repeats, device=device)
    seconds = clock if device.type == "cuda" else cpu
    # Each repeat's own ratio: the sides of a repeat ran next to each other.
    ratios = {
        mode: statistics.median(
            own / model for own, model in zip(seconds[mode], seconds["model"], strict=True)
        )
        for mode in MODES
    }
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    tokens = sum(batch.num_tokens for batch in batches) // len(batches)
    print(
        f"{arguments.encoder}, {arguments.dtype}, {arguments.batch} examples and {tokens:,} tokens a step, {name}"
    )
    print(f"{'dropout':10}{'ms/step':>10}{'CPU ms':>10}{'of model':>10}")
    for mode in MODES:
        each = (1000 * statistics.median(values[mode]) / arguments.steps for values in (clock, cpu))
        print(
            f"{mode:10}" + "".join(f"{milliseconds:10.1f}" for milliseconds in each) + f"{ratios[mode]:10.3f}"
        )
    print(
        json.dumps(
            {
                "encoder": arguments.encoder,
                "dtype": arguments.dtype,
                **{mode: round(ratio, 3) for mode, ratio in ratios.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
