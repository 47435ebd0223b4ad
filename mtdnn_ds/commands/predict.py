"""`predict`: a model's answers to every row of a file, all asked tasks in one pass of the encoder.

Trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtdnn_ds.commands.model_flags import (
    open_files,
    ranks,
    refuse_dtype,
    refuse_file_type,
    refuse_unknown,
    summary,
    whole_number,
)
from mtdnn_ds.config.errors import ConfigError, DataError
from mtdnn_ds.config.precision import Dtype


def run(
    *,
    model: str,
    task: str,
    input: str,
    output: str,
    text_columns: str | None,
    id_column: str | None,
    checkpoint: str | None,
    dtype: Dtype,
    max_tokens: str | None,
    window_rows: str,
    on_bad_row: str,
    trust_plugins: bool,
    log_level: str,
) -> int:
    """Write the answers of `model` to the rows of `input`; returns the exit code.

    Collective under a launcher.
    """
    problems = refuse_unknown("--on_bad_row", on_bad_row, ("refuse", "skip"))
    problems += refuse_file_type("--output", output, (".jsonl", ".csv"))
    problems += refuse_dtype(dtype)
    most_tokens = whole_number("--max_tokens", max_tokens, problems)
    rows = whole_number("--window_rows", window_rows, problems)
    if problems:
        raise ConfigError(problems)
    assert rows is not None
    table = open_files(input, output, text_columns=text_columns, id_column=id_column, log_level=log_level)

    from mtdnn_ds import dist
    from mtdnn_ds.predict.files import predict_file
    from mtdnn_ds.predict.inputs import asked_tasks
    from mtdnn_ds.predict.model import MultiTaskModel

    with ranks() as device:
        opened = MultiTaskModel.from_pretrained(
            model, checkpoint, device=device, dtype=dtype, trust_plugins=trust_plugins
        )
        asked = asked_tasks(task, opened.specs)
        names: Sequence[str] = opened.task_names
        if asked is not None:
            names = [opened.specs[index].name for index in asked]
        if "id" in names:
            raise DataError(
                "--task: a task named 'id' would stand where a row's id stands in the output; leave it out"
            )

        written = predict_file(
            opened,
            table,
            Path(output),
            asked=asked,
            skips_bad=on_bad_row == "skip",
            max_tokens=most_tokens,
            window_rows=rows,
        )
        if dist.is_main():
            print(summary(written, f"answered in {output}", opened.tokenizing.max_length))
    return 0
