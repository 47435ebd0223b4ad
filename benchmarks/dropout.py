"""A training step with dropout masks from counters against the other modes. Measures time, not accuracy.

    python -m benchmarks.dropout --glue_dir DIR
        [--encoder minilm | bert_large:LAYERS | FOLDER] [--dtype fp32 | bf16]

A step is one packed micro-batch of GLUE's dev rows: forward, backward and torch.optim.AdamW. The sides begin
with the same weights, take the same batches and take turns (A B ..., ... B A), so a machine that slows down
slows all. Batches are made before timing. On CPUs the ratio is one of CPU seconds of the whole process, which
other programs on the machine disturb less than seconds on the clock.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.sides import (
    DTYPES,
    Side,
    add_batch_flags,
    add_encoder_flags,
    best_device,
    device_name,
    encoder_folder,
    make_batches,
    measure,
    median_ratio,
    packed_loss,
    parser_for,
    tokenizer_path,
)
from mtdnn_ds.batch import PackedBatch
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


def main() -> None:
    parser = parser_for(__doc__)
    add_batch_flags(parser, tasks="cola,sst2,mrpc,stsb,mnli,qnli,rte", batch=16, steps=4, threads=1)
    add_encoder_flags(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = best_device()
    if device.type == "cpu":
        keep_freed_memory()

    batches, specs = make_batches(arguments, tokenizer_path(arguments.encoder))
    batches = [batch.to(device) for batch in batches]
    with tempfile.TemporaryDirectory() as scratch:
        folder = encoder_folder(arguments.encoder, Path(scratch), arguments.seed)
        sides = [make_side(mode, folder, specs, batches, DTYPES[arguments.dtype], device) for mode in MODES]

    steps = arguments.steps
    times = measure(sides, steps, warmup=steps, repeats=arguments.repeats, device=device)
    seconds = times.wall if device.type == "cuda" else times.cpu
    ratios = {mode: median_ratio(seconds[mode], seconds["model"]) for mode in MODES}

    tokens = sum(batch.num_tokens for batch in batches) // len(batches)
    print(
        f"{arguments.encoder}, {arguments.dtype}, {arguments.batch} examples and {tokens:,} tokens a step, "
        f"{device_name(device)}"
    )
    print(f"{'dropout':10}{'ms/step':>10}{'CPU ms':>10}{'of model':>10}")
    for mode in MODES:
        wall, cpu = (1000 * statistics.median(values[mode]) / steps for values in (times.wall, times.cpu))
        print(f"{mode:10}{wall:10.1f}{cpu:10.1f}{ratios[mode]:10.3f}")

    figures = {"encoder": arguments.encoder, "dtype": arguments.dtype}
    print(json.dumps({**figures, **{mode: round(ratio, 3) for mode, ratio in ratios.items()}}))


if __name__ == "__main__":
    main()
