"""What predict, embed and serve have in common, and evaluate in part: checks of flags, files, and ranks.

Opens no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mtdnn_ds.config.errors import did_you_mean
from mtdnn_ds.config.precision import DTYPES

if TYPE_CHECKING:
    import torch

    from mtdnn_ds.predict.files import OutputSummary
    from mtdnn_ds.predict.table import Table


def refuse_unknown(flag: str, value: str, known: Sequence[str]) -> list[str]:
    """A problem if `value` is none of `known`."""
    if value in known:
        return []
    return [f"{flag} {value}: unknown{did_you_mean(value, known)}"]


def refuse_dtype(value: str) -> list[str]:
    """A problem if `value` is no word of --dtype. What the device computes is seen when it is known."""
    return refuse_unknown("--dtype", value, DTYPES)


def refuse_file_type(flag: str, path: str, known: Sequence[str]) -> list[str]:
    """A problem if the file has none of the `known` suffixes."""
    suffix = Path(path).suffix
    if suffix in known:
        return []
    return [f"{flag} {path}: unknown file type '{suffix}'; use {', '.join(known)}"]


def whole_number(flag: str, text: str | None, problems: list[str], least: int = 1) -> int | None:
    """The number; None where it is not given, or is a problem."""
    if text is None:
        return None
    if text.isascii() and text.isdecimal() and int(text) >= least:
        return int(text)
    problems.append(f"{flag} {text}: must be a whole number, at least {least}")
    return None


def summary(written: OutputSummary, what: str, max_length: int) -> str:
    """What a finished command says."""
    parts = [f"{written.rows:,} rows {what}"]
    if written.went_on:
        parts.append(f"{written.went_on:,} of them by a run that did not end")
    if written.bad:
        parts.append(f"{written.bad:,} bad rows left out")
    if written.truncated:
        parts.append(f"{written.truncated:,} rows longer than encoder.max_length={max_length} were cut")
    return "; ".join(parts)


def open_files(
    input: str, output: str, *, text_columns: str | None, id_column: str | None, log_level: str
) -> Table:
    """The input as a table, after `output` is seen to be free. Raises ConfigError and DataError."""
    from mtdnn_ds.predict.output import refuse_existing
    from mtdnn_ds.predict.table import open_table

    refuse_existing(Path(output))
    table = open_table(input, text_columns=text_columns, id_column=id_column)

    from mtdnn_ds import dist
    from mtdnn_ds.monitor.console import configure_logging

    configure_logging(log_level, dist.rank())  # type: ignore[arg-type]
    return table


@contextmanager
def ranks() -> Iterator[torch.device]:
    """This rank's device; under a launcher the process group is joined and left.

    Collective: all ranks must call this.
    """
    from mtdnn_ds import dist
    from mtdnn_ds.runs.device import keep_freed_memory, take_device

    if dist.world_size() > 1:
        from mtdnn_ds.train.engine import start_distributed, stop_distributed

        yield start_distributed()
        stop_distributed()
        return

    device = take_device()
    if device.type == "cpu":
        keep_freed_memory()
    yield device
