"""`import-task-def`: an mt-dnn task definition as a recipe.

Prints what mt_dnn/import_task_def.py did; no work here.
"""

from __future__ import annotations


def run(*, task_def: str, data: str, output: str, encoder: str | None, decode_with: str | None) -> int:
    """Write the recipe and list what is not carried over; returns the exit code.

    Raises ConfigError, DataError.
    """
    from mtdnn_ds.mt_dnn.import_task_def import import_task_def

    result = import_task_def(
        task_def=task_def, data=data, output=output, encoder=encoder, decode_with=decode_with
    )

    if result.findings:
        print(f"{len(result.findings)} things of {task_def} are not carried over as they stand:")
    else:
        print(f"all of {task_def} is carried over")
    for line in result.findings:
        print(f"  {line}")

    names = ", ".join(result.tasks)
    written = f"wrote {result.path}: {len(result.tasks)} of {result.num_definitions} tasks ({names})"
    if result.rows is not None:
        written += f"; converted rows in {result.rows}"
    print(written)
    print(f"train it with: deepspeed launchers/train.py --recipe {result.path}")
    return 0
