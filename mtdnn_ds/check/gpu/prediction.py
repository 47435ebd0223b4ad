"""Part predict: texts a second of the verb predict, on a file of many lines."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path

from mtdnn_ds.check.gpu.bench import Bench
from mtdnn_ds.check.gpu.results import Row
from mtdnn_ds.check.gpu.workload import BERT_BASE, TINY, write_recipe, write_texts
from mtdnn_ds.check.tiny_runs import resolved_json, training_only
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.predict.files import predict_file
from mtdnn_ds.predict.inputs import asked_tasks
from mtdnn_ds.predict.model import MultiTaskModel
from mtdnn_ds.predict.table import open_table
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.train.engine import start_distributed
from mtdnn_ds.train.trainer import train

TASK = "single"
NUM_LINES = 8000


def look(bench: Bench) -> None:
    """All its lines by one model of BERT-base's size."""
    device = start_distributed()
    folder = bench.scratch / "predict"
    size = TINY if bench.is_rehearsal else BERT_BASE
    settings = {"train.steps": "1", "schedule.warmup": "0", "batch.examples_per_step": "8"}
    path = write_recipe(folder, size, rows=64)
    recipe = load_recipe(str(path), settings)
    (folder / "deepspeed.json").write_text('{"zero_optimization": {"stage": 0}}')
    train(
        recipe,
        training_only(resolve_tasks(recipe)),
        resolved_json(folder / "deepspeed.json", recipe),
        output_dir=folder / "run",
        resume="none",
        quiet=True,
    )

    lines = write_texts(
        folder / "lines.jsonl", size, bench.sized(NUM_LINES, 300), 9, is_pair=False, num_labels=2
    )
    model = MultiTaskModel.from_pretrained(str(folder / "run"), device=device)
    for name in ("first", "second"):  # the first one allocates and compiles
        bench.tried(name, partial(_predict, model, lines, folder, name))


def _predict(model: MultiTaskModel, lines: Path, folder: Path, name: str) -> Row:
    table = open_table(str(lines), text_columns=None, id_column=None)
    asked = asked_tasks(TASK, model.specs)
    output = folder / f"{name}.jsonl"
    begin = time.perf_counter()
    summary = predict_file(model, table, output, asked=asked)
    seconds = time.perf_counter() - begin

    answers = [json.loads(line) for line in output.read_text().splitlines()]
    is_good = len(answers) == summary.rows and all(TASK in answer for answer in answers)
    dtype = str(next(model.net.parameters()).dtype).removeprefix("torch.")
    figures = {"lines": summary.rows, "seconds": seconds, "texts/s": round(summary.rows / seconds)}
    return Row(name=f"{name} time", status="ok" if is_good else "failed", figures={**figures, "dtype": dtype})
