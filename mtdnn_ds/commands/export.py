"""`export`: a run as folders for transformers, ONNX and sentence-transformers, with a table of what was made. Writes nothing itself."""

from __future__ import annotations


def run(
    *, run_dir: str, task: str | None, checkpoint: str, output_dir: str | None, format: str, log_level: str
) -> int:
    """Export `run_dir`; prints folder, class, parity and size of everything that was made."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from mtdnn_ds.export.run import export_run

    made = export_run(run_dir, output_dir, task=task, checkpoint=checkpoint, format=format)
    table = Table(box=SIMPLE)
    for name, justify in (
        ("folder", "left"),
        ("loads with", "left"),
        ("largest difference", "right"),
        ("sequences", "right"),
        ("size", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for each in made:
        difference, rows = (
            (f"{each.parity.difference:.1e}", str(each.parity.rows)) if each.parity else ("not compared", "-")
        )
        table.add_row(each.name, each.loads_with, difference, rows, f"{each.size_bytes / 1e6:,.1f} MB")
    console = Console(width=None if Console().is_terminal else 140)
    console.print(table)
    for each in made:
        if each.note:
            print(f"{each.name}: {each.note}")
    root = made[0].folder.parents[made[0].name.count("/")]
    print(f"written to {root}")
    return 0
