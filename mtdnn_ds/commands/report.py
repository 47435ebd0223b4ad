"""`report`: one HTML page on one or several runs. Trains nothing.

Predicts dev rows where data and weights are at hand.
"""

from __future__ import annotations

from pathlib import Path

from mtdnn_ds.config.errors import ConfigError


def run(*, run_dir: tuple[str, ...], output: str, no_predictions: bool, max_rows: str, log_level: str) -> int:
    """Write the page to `output`. Raises ConfigError if a folder is no run or the page is there already."""
    if not max_rows.isdecimal() or int(max_rows) < 1:
        raise ConfigError(f"--max_rows {max_rows}: must be a whole number, at least 1")
    path = Path(output)
    if path.exists():
        raise ConfigError(f"--output {path}: is there already; remove it, or give another --output")

    from mtdnn_ds.monitor.console import configure_logging
    from mtdnn_ds.report.write import write_report

    configure_logging(log_level, 0)  # type: ignore[arg-type]
    write_report(run_dir, path, max_rows=None if no_predictions else int(max_rows))

    print(f"written: {path}")
    return 0
