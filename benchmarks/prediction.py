"""Prediction of nine tasks against one and a padded transformers pipeline. Measures time, not accuracy.

    python -m benchmarks.prediction --glue_dir DIR [--texts 384] [--rounds 5] [--threads 2] [--max_tokens N]

one     MultiTaskModel.predict of one task (MNLI) on pairs, drawn evenly from dev files of GLUE's pair tasks
nine    the same texts, nine tasks on pairs (GLUE's seven, SNLI, SciTail)
theirs  transformers.pipeline("text-classification") at batch 32, with the same encoder and MNLI head

On MiniLM in fp32, with heads drawn at random: what a head costs does not depend on its weights. Everything
from text to answer is timed, tokens included. Before timing, theirs and ours must give the same
probabilities. Sides take turns; ratios are of a round, and medians over the rounds, of wall-clock and of CPU
time of the process, which other load on the machine disturbs less.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, pipeline

from benchmarks.sides import MINILM, in_turn, median_ratio, parser_for
from mtdnn_ds.config.encoder_path import resolve_encoder_path
from mtdnn_ds.config.recipe import DataSettings, Recipe
from mtdnn_ds.predict.model import MultiTaskModel
from mtdnn_ds.runs.device import keep_freed_memory
from mtdnn_ds.runs.load import LoadedRun
from mtdnn_ds.runs.setup import RunData, loader_settings, run_model
from mtdnn_ds.tasks.layout import head_layout
from mtdnn_ds.tasks.resolve import builtin_task

TASKS = ("mnli", "mrpc", "stsb", "qqp", "qnli", "rte", "wnli", "snli", "scitail")
# file -> columns of its two texts
TEXTS_OF = {
    "RTE/dev.tsv": (1, 2),
    "MRPC/dev.tsv": (3, 4),
    "STS-B/dev.tsv": (7, 8),
    "QQP/dev.tsv": (3, 4),
    "QNLI/dev.tsv": (1, 2),
    "MNLI/dev_matched.tsv": (8, 9),
}
LARGEST_DIFFERENCE = 1e-5  # of probabilities
MAX_LENGTH = 128


def read_pairs(glue_dir: Path, num_texts: int) -> list[tuple[str, str]]:
    """As many pairs of every file, mixed; the same for the same arguments."""
    random = np.random.default_rng(0)
    pairs = []
    for file, (first, second) in TEXTS_OF.items():
        lines = (glue_dir / file).read_text(encoding="utf-8-sig").split("\n")[1:]
        rows = [line.split("\t") for line in lines if line]
        usable = [row for row in rows if len(row) > second and row[first].strip() and row[second].strip()]
        chosen = random.choice(len(usable), size=-(-num_texts // len(TEXTS_OF)), replace=False)
        pairs += [(usable[index][first], usable[index][second]) for index in chosen]
    return [pairs[index] for index in random.permutation(len(pairs))[:num_texts]]


def make_ours(max_tokens: int) -> MultiTaskModel:
    recipe = Recipe.model_validate(
        {
            "encoder": {"path": MINILM, "max_length": MAX_LENGTH},
            "tasks": {name: {} for name in TASKS},
            "batch": {"max_tokens_per_micro_batch": max_tokens},
            "train": {"steps": 1},
        }
    )
    device = torch.device("cpu")
    specs = tuple(builtin_task(name, DataSettings()) for name in TASKS)
    layout = head_layout(specs)

    net = run_model(
        recipe, RunData(specs=specs, layout=layout, examples={}), device=device, compute_dtype=torch.float32
    )
    settings = loader_settings(
        recipe, hidden_size=net.encoder.hidden_size, rank=0, world_size=1, device=device
    )
    return MultiTaskModel(
        LoadedRun(recipe=recipe, specs=specs, layout=layout, model=net, settings=settings, device=device)
    )


def make_theirs(ours: MultiTaskModel) -> Callable[[list[tuple[str, str]]], list[list[float]]]:
    path = resolve_encoder_path(MINILM)
    config = BertConfig.from_pretrained(path, num_labels=3)
    theirs = BertForSequenceClassification.from_pretrained(path, config=config).eval()
    weights, columns = ours.net.state_dict(), ours.layout.terms[0].columns
    with torch.no_grad():
        theirs.classifier.weight.copy_(weights["heads.sequence.weight"][columns.start : columns.stop])
        theirs.classifier.bias.copy_(weights["heads.sequence.bias"][columns.start : columns.stop])

    tokenizer = AutoTokenizer.from_pretrained(path)
    classify = pipeline(
        "text-classification", model=theirs, tokenizer=tokenizer, batch_size=32, top_k=None, device="cpu"
    )

    def run(pairs: list[tuple[str, str]]) -> list[list[float]]:
        inputs = [{"text": first, "text_pair": second} for first, second in pairs]
        found = classify(inputs, truncation=True, max_length=MAX_LENGTH, padding=True)
        by_label = [sorted(of_text, key=lambda each: each["label"]) for of_text in found]
        return [[each["score"] for each in of_text] for of_text in by_label]

    return run


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = parser_for(__doc__)
    parser.add_argument("--glue_dir", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max_tokens", type=int, default=4096)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    keep_freed_memory()

    pairs = read_pairs(given.glue_dir, given.texts)
    ours = make_ours(given.max_tokens)
    theirs = make_theirs(ours)
    sides: dict[str, Callable[[], Any]] = {
        "one": lambda: ours.predict(pairs, tasks=["mnli"]),
        "nine": lambda: ours.predict(pairs, tasks=list(TASKS)),
        "theirs": lambda: theirs(pairs),
    }

    mine = np.array([list(each["mnli"]["probabilities"].values()) for each in sides["one"]()])
    difference = float(np.abs(mine - np.array(sides["theirs"]())).max())
    assert difference < LARGEST_DIFFERENCE, f"probabilities differ by {difference:.1e}"
    assert list(sides["nine"]()[0]) == list(TASKS)

    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(given.rounds):
        for name in in_turn(list(sides), number):
            began, cpu_began = time.perf_counter(), time.process_time()
            sides[name]()
            wall[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - cpu_began)

    result: dict[str, Any] = {
        "texts": len(pairs),
        "threads": given.threads,
        "rounds": given.rounds,
        "largest_difference": difference,
    }
    for clock, seconds in (("wall", wall), ("cpu", cpu)):
        figures = {f"{name}_seconds": statistics.median(own) for name, own in seconds.items()}
        figures["nine_to_one"] = median_ratio(seconds["nine"], seconds["one"])
        figures["one_to_theirs_texts_per_second"] = median_ratio(seconds["theirs"], seconds["one"])
        figures["nine_to_theirs_texts_per_second"] = median_ratio(seconds["theirs"], seconds["nine"])
        result[clock] = {name: round(value, 3) for name, value in figures.items()}
    print(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    main()
