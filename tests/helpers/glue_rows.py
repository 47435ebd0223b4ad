"""Small cuts of GLUE files, real or generated, and their raw texts read without the project's own readers.

Not a test file.
"""

from __future__ import annotations

from pathlib import Path

from helpers.reference_loop import Example

# folder, train file, text columns, label column, labels in class-id order (None: a score); counted by hand in
# the official files
COLUMNS: dict[str, tuple[str, tuple[int, ...], int, list[str] | None]] = {
    "cola": ("CoLA", (3,), 1, ["0", "1"]),
    "sst2": ("SST-2", (0,), 1, ["0", "1"]),
    "mrpc": ("MRPC", (3, 4), 0, ["0", "1"]),
    "stsb": ("STS-B", (7, 8), 9, None),
    "qqp": ("QQP", (3, 4), 5, ["0", "1"]),
    "mnli": ("MNLI", (8, 9), 11, ["entailment", "neutral", "contradiction"]),
    "qnli": ("QNLI", (1, 2), 3, ["entailment", "not_entailment"]),
    "rte": ("RTE", (1, 2), 3, ["entailment", "not_entailment"]),
    "wnli": ("WNLI", (1, 2), 3, ["0", "1"]),
}


def cut_glue(source: Path, target: Path, *, train_rows: int, dev_rows: int) -> Path:
    """The first rows of every GLUE file, in the same layout."""
    for folder in {columns[0] for columns in COLUMNS.values()}:
        (target / folder).mkdir(parents=True)
        for file in (source / folder).glob("*.tsv"):
            if file.stem != "test":
                rows = file.read_bytes().split(b"\n")[
                    : 1 + (train_rows if file.stem == "train" else dev_rows)
                ]
                (target / folder / file.name).write_bytes(b"\n".join(rows) + b"\n")
    return target


def read_example(glue: Path, task: str, line_number: int) -> Example:
    """The training example on a 1-based line of the task's file."""
    folder, text_columns, label_column, labels = COLUMNS[task]
    line = (glue / folder / "train.tsv").read_text(encoding="utf-8-sig").split("\n")[line_number - 1]
    cells = line.split("\t")
    label = cells[label_column].strip()
    return Example(
        task=task,
        texts=tuple(cells[column] for column in text_columns),
        label=float(label) if labels is None else labels.index(label),
    )
