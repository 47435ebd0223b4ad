"""mtdnn_ds: one encoder, many tasks, trained exactly under DeepSpeed. Imports nothing heavy.

Public: CustomKind, the record of a task kind of your own, and check_task, which tries it on a few rows
(docs/own_kind.md); MultiTaskModel, a trained model that answers texts (docs/predict.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtdnn_ds.check.task import check_task as check_task
    from mtdnn_ds.predict.model import MultiTaskModel as MultiTaskModel
    from mtdnn_ds.tasks.spec import CustomKind as CustomKind

__version__ = "0.4.0"


def __getattr__(name: str) -> Any:
    """Public names, imported when they are asked for."""
    if name == "CustomKind":
        from mtdnn_ds.tasks.spec import CustomKind

        return CustomKind
    if name == "check_task":
        from mtdnn_ds.check.task import check_task

        return check_task
    if name == "MultiTaskModel":
        from mtdnn_ds.predict.model import MultiTaskModel

        return MultiTaskModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
