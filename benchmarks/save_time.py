"""How long a run pauses for a checkpoint, by part: of a BERT-large with its optimizer. Trains nothing of use.

    python -m benchmarks.save_time [--layers 24] [--saves 3] [--folder DIR]

A BERT of BERT-large's shape with random weights, bf16, ZeRO 2, one rank, random gradients for one step, so
that AdamW's states exist; then checkpoints, at once and in the background, into a temporary folder on the
disk of --folder. Prints the medians as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from transformers import BertConfig, BertModel

from mtdnn_ds.checkpoint.save import begin_save, complete_save
from mtdnn_ds.files import size
from mtdnn_ds.train.engine import start_distributed, start_engine, stop_distributed


def build_engine(layers: int) -> Any:
    """An engine that has done one step."""
    torch.manual_seed(0)
    large = BertConfig(
        vocab_size=30522,
        hidden_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=512,
    )
    model = BertModel(large)

    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
        "checkpoint": {"tag_validation": "Fail"},
    }
    engine = start_engine(model, torch.optim.AdamW(model.parameters(), lr=1e-4), config)

    ids = torch.randint(0, 30000, (1, 8))
    engine.backward(engine(ids).last_hidden_state.float().square().mean())
    engine.step()
    return engine


def measure(engine: Any, folder: Path, step: int, *, in_background: bool) -> dict[str, float]:
    """Seconds of one save: how long training stands still, and the parts of that or of the thread's work."""
    begin = time.perf_counter()
    begun = begin_save(
        engine, folder, step=step, run_state={"step": step}, keep_last=1, also=(), in_background=in_background
    )
    begun_at = time.perf_counter()
    written = begun.writer.wait()
    waited_at = time.perf_counter()
    complete_save(begun)
    end = time.perf_counter()

    parts = {name: round(seconds, 2) for name, seconds in written.seconds.items()}
    pause = (begun_at - begin) + (end - waited_at)
    return {
        "pause": round(pause, 2),
        "whole": round(end - begin, 2),
        **parts,
        "gather_and_rest": round(begun_at - begin - _in_pause(parts, in_background), 2),
        "complete": round(end - waited_at, 2),
    }


def _in_pause(parts: dict[str, float], in_background: bool) -> float:
    """Seconds of the parts during which training stands still."""
    if in_background:
        return parts.get("snapshot", 0.0)
    return sum(parts.values())


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--saves", type=int, default=3, help="of each kind; medians are printed")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()

    start_distributed()
    engine = build_engine(given.layers)
    folder = Path(tempfile.mkdtemp(prefix="save_time_", dir=given.folder))
    rows: dict[str, list[dict[str, float]]] = {"at once": [], "in the background": []}
    try:
        for number in range(given.saves):
            for index, (name, of_kind) in enumerate(rows.items()):
                step = 2 * number + index + 1
                of_kind.append(measure(engine, folder, step, in_background=name != "at once"))
                print(name, json.dumps(of_kind[-1]), "load", os.getloadavg()[0], flush=True)

        total = sum(path.stat().st_size for path in next(folder.glob("step_*")).iterdir())
        figures = {name: medians(of_kind) for name, of_kind in rows.items()}
        print(json.dumps({"checkpoint": size(total), **figures}))
    finally:
        shutil.rmtree(folder)
    stop_distributed()


if __name__ == "__main__":
    main()
