"""`export`: a run as folders for transformers, ONNX and sentence-transformers.

Prints what was made; writes nothing itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from mtdnn_ds.export.run import ExportedFolder


def run(
    *, run_dir: str, task: str | None, checkpoint: str, output_dir: str | None, format: str, log_level: str
) -> int:
    """Export `run_dir`; prints folder, class, parity and size of everything that was made."""
    from mtdnn_ds import api
    from mtdnn_ds.monitor.console import print_table

    exported = api.export(run_dir, output_dir, task=task, checkpoint=checkpoint, format=format)

    print_table(_table(exported))
    for each in exported:
        if each.note:
            print(f"{each.name}: {each.note}")
    root = exported[0].folder.parents[exported[0].name.count("/")]
    print(f"written to {root}")
    return 0


def _table(exported: list[ExportedFolder]) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE)
    for name in ("folder", "loads with"):
        table.add_column(name)
    for name in ("largest difference", "sequences", "size"):
        table.add_column(name, justify="right")

    for each in exported:
        compared = ("not compared", "-")
        if each.parity:
            compared = (f"{each.parity.difference:.1e}", str(each.parity.rows))
        table.add_row(each.name, each.loads_with, *compared, f"{each.size_bytes / 1e6:,.1f} MB")
    return table
