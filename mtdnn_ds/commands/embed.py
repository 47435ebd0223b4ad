"""`embed`: the encoder's embedding of every row of a file. Answers no task."""

from __future__ import annotations

import re
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
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.precision import Dtype


def run(
    *,
    model: str,
    input: str,
    output: str,
    pooling: str,
    layer: str,
    task: str | None,
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
    """Write the embeddings of the rows of `input`; returns the exit code. Collective under a launcher."""
    problems = refuse_unknown("--on_bad_row", on_bad_row, ("refuse", "skip"))
    problems += refuse_unknown("--pooling", pooling, ("cls", "mean"))
    problems += refuse_file_type("--output", output, (".npy", ".parquet"))
    if not re.fullmatch(r"-?\d{1,4}", layer):
        problems.append(f"--layer {layer}: must be a whole number, -1 for the last layer")
    if id_column is not None and Path(output).suffix == ".npy":
        problems.append(
            "--id_column: has no effect on a .npy, which holds numbers alone; "
            "leave it out, or write a .parquet"
        )
    problems += refuse_dtype(dtype)
    most_tokens = whole_number("--max_tokens", max_tokens, problems)
    rows = whole_number("--window_rows", window_rows, problems)
    if problems:
        raise ConfigError(problems)
    assert rows is not None
    table = open_files(input, output, text_columns=text_columns, id_column=id_column, log_level=log_level)

    from mtdnn_ds import dist
    from mtdnn_ds.predict.embed_files import embed_file
    from mtdnn_ds.predict.model import MultiTaskModel

    with ranks() as device:
        opened = MultiTaskModel.from_pretrained(
            model, checkpoint, device=device, dtype=dtype, trust_plugins=trust_plugins
        )
        written = embed_file(
            opened,
            table,
            Path(output),
            pooling=pooling,  # type: ignore[arg-type]
            layer=int(layer),
            task=task,
            skips_bad=on_bad_row == "skip",
            max_tokens=most_tokens,
            window_rows=rows,
        )
        if dist.is_main():
            print(summary(written, f"embedded in {output}", opened.tokenizing.max_length))
    return 0
