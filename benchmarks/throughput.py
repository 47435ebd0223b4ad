"""Packed multi-task training against a plain padded Hugging Face loop. Measures speed, not accuracy.

    python -m benchmarks.throughput --glue_dir DIR
        [--encoder minilm | bert_large:LAYERS | FOLDER] [--dtype fp32 | bf16]

ours     mtdnn_ds' MultiTaskNet on packed micro-batches, fused head, losses/objective.py
theirs   transformers' BertModel on batches padded to their longest example, one nn.Linear per task

Both sides: the same examples in the same batches (drawn evenly from the dev rows of all tasks), the same
weights, objective, dtype and torch.optim.AdamW. Before timing, their losses on the first batch must agree.
Sides take turns (A B, B A, ...), so a machine that slows down slows both; batches are made before timing on
both sides, which favours theirs, since its collator would run in the training loop. Tokens are real ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, BertConfig

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
from mtdnn_ds.model.multitask import MultiTaskNet, build_model
from mtdnn_ds.monitor.flops import encoder_flops
from mtdnn_ds.runs.device import keep_freed_memory
from mtdnn_ds.tasks.layout import HeadLayout, head_layout
from mtdnn_ds.tasks.spec import TaskSpec

LARGEST_LOSS_DIFFERENCE = {"fp32": 1e-4, "bf16": 3e-2}  # bf16 has 8 bits of mantissa


@dataclass(frozen=True, kw_only=True, slots=True)
class PaddedBatch:
    """The examples of a PackedBatch, padded to the longest; S examples of L tokens."""

    input_ids: Tensor  # (S, L)
    token_type_ids: Tensor  # (S, L)
    attention_mask: Tensor  # (S, L)
    rows_of_task: dict[int, Tensor]  # task id -> index into S
    labels: Tensor  # (S,)


class PaddedModel(nn.Module):
    """The plain loop's model: pooled output, dropout, one linear layer per task.

    Weights copied from `ours`.
    """

    def __init__(
        self, folder: str, ours: MultiTaskNet, layout: HeadLayout, dtype: torch.dtype, dropout: str
    ) -> None:
        super().__init__()
        settings = {}
        if dropout == "none":
            settings = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        self.encoder: Any = AutoModel.from_pretrained(folder, dtype=dtype, **settings)
        self.encoder.pooler.load_state_dict(ours.encoder.pooler.state_dict())
        self.dropout = nn.Dropout(self.encoder.config.hidden_dropout_prob)

        width = self.encoder.config.hidden_size
        self.heads = nn.ModuleList(nn.Linear(width, term.num_outputs, dtype=dtype) for term in layout.terms)
        self.is_regression = [term.form == "score" for term in layout.terms]
        bank: Any = ours.heads["sequence"]
        for head, term in zip(self.heads, layout.terms, strict=True):
            columns = slice(term.columns.start, term.columns.stop)
            weights = {"weight": bank.weight[columns].detach(), "bias": bank.bias[columns].detach()}
            head.load_state_dict(weights)

    def loss(self, batch: PaddedBatch) -> Tensor:
        """Mean over all examples of the batch."""
        output = self.encoder(
            input_ids=batch.input_ids,
            token_type_ids=batch.token_type_ids,
            attention_mask=batch.attention_mask,
        )
        pooled = self.dropout(output.pooler_output)

        total = pooled.new_zeros((), dtype=torch.float32)
        for task_id, rows in batch.rows_of_task.items():
            logits, labels = self.heads[task_id](pooled[rows]).float(), batch.labels[rows]
            if self.is_regression[task_id]:
                total = total + functional.mse_loss(logits[:, 0], labels, reduction="sum")
            else:
                total = total + functional.cross_entropy(logits, labels.long(), reduction="sum")
        return total / len(batch.labels)


def padded(batch: PackedBatch, device: torch.device) -> PaddedBatch:
    lengths = batch.cu_seqlens.diff().tolist()
    ones = [torch.ones(length, dtype=torch.int64) for length in lengths]

    task_ids, labels = torch.full((len(lengths),), -1), torch.zeros(len(lengths))
    for targets in batch.targets.values():  # every sequence is one example of one task
        task_ids[targets.rows], labels[targets.rows] = targets.term_ids, targets.labels
    rows_of_task = {int(task_id): torch.nonzero(task_ids == task_id)[:, 0] for task_id in task_ids.unique()}

    return PaddedBatch(
        input_ids=pad_sequence(batch.input_ids.split(lengths), batch_first=True).to(device),
        token_type_ids=pad_sequence(batch.token_type_ids.split(lengths), batch_first=True).to(device),
        attention_mask=pad_sequence(ones, batch_first=True).to(device),
        rows_of_task={task_id: rows.to(device) for task_id, rows in rows_of_task.items()},
        labels=labels.to(device),
    )


def build_sides(
    arguments: argparse.Namespace,
    folder: str,
    batches: Sequence[PackedBatch],
    specs: tuple[TaskSpec, ...],
    device: torch.device,
) -> list[Side]:
    """Both sides, after their losses on the first batch were found equal."""
    dtype = DTYPES[arguments.dtype]
    layout = head_layout(specs)
    ours = build_model(
        encoder_path=folder,
        specs=specs,
        layout=layout,
        device_type=device.type,
        compute_dtype=dtype,
        parameter_dtype=dtype,
        dropout=arguments.dropout,
        seed=arguments.seed,
    )
    theirs = PaddedModel(folder, ours, layout, dtype, arguments.dropout)
    for note in ours.notes:
        print(note)
    ours.to(device).eval()
    theirs.to(device).eval()

    losses = build_losses(layout, specs, device)
    on_device = [batch.to(device) for batch in batches]
    padded_batches = [padded(batch, device) for batch in batches]
    with torch.no_grad():
        our_loss = packed_loss(ours, on_device[0], losses).item()
        their_loss = theirs.loss(padded_batches[0]).item()
    if abs(our_loss - their_loss) > LARGEST_LOSS_DIFFERENCE[arguments.dtype]:
        raise SystemExit(
            f"the two sides do not compute the same: loss {our_loss:.6f} (ours) and {their_loss:.6f} "
            "(theirs) on the same batch"
        )
    print(f"same loss on the first batch: {our_loss:.6f} (ours) {their_loss:.6f} (theirs)")

    ours.train()
    theirs.train()
    return [
        Side(
            name="ours",
            loss=lambda index: packed_loss(ours, on_device[index], losses),
            optimizer=torch.optim.AdamW(ours.parameters(), lr=1e-5),
        ),
        Side(
            name="theirs",
            loss=lambda index: theirs.loss(padded_batches[index]),
            optimizer=torch.optim.AdamW(theirs.parameters(), lr=1e-5),
        ),
    ]


def parse_arguments() -> argparse.Namespace:
    parser = parser_for(__doc__)
    add_batch_flags(
        parser,
        tasks="cola,sst2,mrpc,stsb,qqp,mnli,qnli,rte",
        batch=32,
        steps=8,
        threads=torch.get_num_threads(),
    )
    add_encoder_flags(parser)
    parser.add_argument(
        "--dropout", choices=("model", "none"), default="model", help="model: as the encoder's config says"
    )
    parser.add_argument("--warmup", type=int, default=2, help="untimed steps per side")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    device = best_device()
    if device.type == "cpu":
        keep_freed_memory()  # for both sides

    batches, specs = make_batches(arguments, tokenizer_path(arguments.encoder))
    with tempfile.TemporaryDirectory() as scratch:
        folder = encoder_folder(arguments.encoder, Path(scratch), arguments.seed)
        config = AutoConfig.from_pretrained(folder)
        sides = build_sides(arguments, folder, batches, specs, device)

    times = measure(sides, len(batches), warmup=arguments.warmup, repeats=arguments.repeats, device=device)
    report(arguments, batches, times.wall, config, device)


def report(
    arguments: argparse.Namespace,
    batches: Sequence[PackedBatch],
    seconds: dict[str, list[float]],
    config: BertConfig,
    device: torch.device,
) -> None:
    """A table for people, and its figures as the last line in JSON."""
    tokens = sum(batch.num_tokens for batch in batches)
    padding_share = 1 - tokens / sum(batch.num_sequences * batch.max_seqlen for batch in batches)
    flops = encoder_flops(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_tokens=tokens,
        sum_squared_lengths=sum(int((batch.cu_seqlens.diff().long() ** 2).sum()) for batch in batches),
    )
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = median_ratio(seconds["theirs"], seconds["ours"])

    print(
        f"\n{arguments.encoder}, {arguments.dtype}, dropout {arguments.dropout}, {arguments.batch} examples "
        f"a step, {device_name(device)}"
    )
    print(f"padding of the padded side: {padding_share:.1%} of its tokens")
    print(f"{'':8}{'real tokens/s':>15}{'examples/s':>12}{'ms/step':>10}{'GFLOP/s':>10}")
    for name, median in medians.items():
        examples = len(batches) * arguments.batch
        milliseconds = 1000 * median / len(batches)
        print(
            f"{name:8}{tokens / median:15,.0f}{examples / median:12,.1f}{milliseconds:10,.1f}"
            f"{flops / median / 1e9:10,.1f}"
        )
    print(f"ours is {ratio:.2f} times as fast (median of {arguments.repeats} repeats)\n")

    figures = {
        "encoder": arguments.encoder,
        "dtype": arguments.dtype,
        "dropout": arguments.dropout,
        "batch": arguments.batch,
        "device": device_name(device),
        "torch": torch.__version__,
        "padding_share": round(padding_share, 4),
        "tokens_per_second": {name: round(tokens / median, 1) for name, median in medians.items()},
        "ratio": round(ratio, 3),
        "seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
