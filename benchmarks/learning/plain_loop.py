"""RTE with MNLI as mt-dnn's code trains them, in a plain loop: padded batches, torch and transformers alone.

    python -m benchmarks.learning.plain_loop --data DIR

What namisan/mt-dnn does on purpose or by mistake: mini-batches cut once in the order of the files, of which
only the order changes, and a pooler without its tanh. Beside it the same loop with shuffled rows and the
pooler as it is. One task a step and the mean over its batch are in both. Encoder, optimizer, schedule, steps,
seeds and scored rows are those of table rte_mnli, whose results stand beside these.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModel, AutoTokenizer, get_linear_schedule_with_warmup

from benchmarks.learning.__main__ import RESULTS
from benchmarks.learning.runs import Result, append_result, read_results
from benchmarks.sides import MINILM
from mtdnn_ds.config.encoder_path import resolve_encoder_path

LABELS = {"rte": ("not_entailment", "entailment"), "mnli": ("contradiction", "neutral", "entailment")}
STEPS_OF_TASK, BATCH, LR, HEAD_LR = 234, 32, 1e-4, 1e-3

Pair = tuple[str, str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """Settings of the loop."""

    fixed_batches: bool
    identity_pooler: bool


WAYS = {
    "plain loop": Way(fixed_batches=False, identity_pooler=False),
    "mt-dnn's choices": Way(fixed_batches=True, identity_pooler=True),
}


class Model(nn.Module):
    """MiniLM, its pooler, and a linear head for each task."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(resolve_encoder_path(MINILM))
        if way.identity_pooler:
            self.encoder.pooler.activation = nn.Identity()

        hidden_size = self.encoder.config.hidden_size
        self.dropout = nn.Dropout(self.encoder.config.hidden_dropout_prob)
        self.heads = nn.ModuleDict({task: nn.Linear(hidden_size, len(LABELS[task])) for task in LABELS})
        for head in self.heads.values():
            nn.init.normal_(head.weight, std=self.encoder.config.initializer_range)
            nn.init.zeros_(head.bias)

    def forward(self, task: str, inputs: dict[str, Tensor]) -> Tensor:
        """Logits (B, C)."""
        pooled_BD = self.encoder(**inputs).pooler_output
        logits: Tensor = self.heads[task](self.dropout(pooled_BD))
        return logits.float()

    def groups(self) -> list[dict[str, object]]:
        """Pooler and heads learn faster; biases and norms do not decay."""
        groups = []
        for is_head in (False, True):
            for decays in (False, True):
                members = [
                    parameter
                    for name, parameter in self.named_parameters()
                    if ("pooler" in name or "heads" in name) == is_head and (parameter.dim() > 1) == decays
                ]
                lr, decay = HEAD_LR if is_head else LR, 0.01 if decays else 0.0
                groups.append({"params": members, "lr": lr, "weight_decay": decay})
        return groups


def rows(path: Path, task: str) -> list[Pair]:
    """(premise, hypothesis, class id) of an official file."""
    columns = ("sentence1", "sentence2", "label" if task == "rte" else "gold_label")
    with path.open(encoding="utf-8-sig", newline="") as file:
        found = [
            tuple(row[column] for column in columns)
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]
    return [(first, second, LABELS[task].index(label)) for first, second, label in found]


def batches_of(
    data: dict[str, list[Pair]], way: Way, random: np.random.Generator
) -> Iterator[tuple[str, list[Pair]]]:
    """The run's steps: as many of each task, in random order."""
    of_task = {task: _batches(data[task], way, random) for task in data}
    order = random.permutation(np.repeat(list(data), STEPS_OF_TASK))
    for task in order.tolist():
        yield task, next(of_task[task])


def _batches(pairs: list[Pair], way: Way, random: np.random.Generator) -> Iterator[list[Pair]]:
    """One task's mini-batches, epoch after epoch."""
    while True:
        order = np.arange(len(pairs))
        if not way.fixed_batches:
            order = random.permutation(order)

        slices = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        for index in random.permutation(len(slices)):
            yield [pairs[row] for row in slices[index]]


def train(
    way: Way, seed: int, data: dict[str, list[Pair]], dev: Sequence[Pair], precision: str
) -> tuple[float, int]:
    """Accuracy on the development rows after the last step; real tokens that were trained on."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(resolve_encoder_path(MINILM))
    model = Model(way).train()
    optimizer = torch.optim.AdamW(model.groups())
    num_steps = STEPS_OF_TASK * len(data)
    schedule = get_linear_schedule_with_warmup(optimizer, round(0.1 * num_steps), num_steps)
    tokens = 0

    def tensors(pairs: Sequence[Pair]) -> tuple[dict[str, Tensor], Tensor]:
        first, second, labels = zip(*pairs, strict=True)
        inputs = tokenizer(
            list(first), list(second), padding="longest", truncation=True, max_length=128, return_tensors="pt"
        )
        return dict(inputs), torch.tensor(labels)

    half = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    for task, pairs in batches_of(data, way, np.random.default_rng(seed)):
        inputs, labels = tensors(pairs)
        tokens += int(inputs["attention_mask"].sum())
        with half:
            logits = model(task, inputs)
        cross_entropy(logits, labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    model.eval()
    correct = 0
    for start in range(0, len(dev), 64):
        inputs, labels = tensors(dev[start : start + 64])
        with torch.no_grad(), half:
            logits = model("rte", inputs)
        correct += int((logits.argmax(dim=1) == labels).sum())
    return correct / len(dev), tokens


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with glue/")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the committed results")
    arguments = parser.parse_args()

    glue, results = arguments.data / "glue", arguments.results / "plain_loop.jsonl"
    data = {"rte": rows(glue / "RTE/train.tsv", "rte"), "mnli": rows(glue / "MNLI/train.tsv", "mnli")}
    dev = rows(glue / "RTE/dev.tsv", "rte")
    for seed in (int(seed) for seed in arguments.seeds.split(",")):
        for name, way in WAYS.items():
            run = f"{name}_seed_{seed}".replace(" ", "_")
            if run in read_results(results):
                continue
            begin = time.monotonic()
            accuracy, tokens = train(way, seed, data, dev, arguments.precision)
            result = Result(
                name=run,
                way=name,
                seed=seed,
                at={},
                settings="",
                scores={"rte": {"accuracy": accuracy}},
                steps=STEPS_OF_TASK * len(data),
                tokens=tokens,
                seconds=round(time.monotonic() - begin, 1),
                precision=arguments.precision,
            )
            append_result(results, result)
            print(f"{run}: {accuracy:.4f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
