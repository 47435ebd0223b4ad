"""Run states of earlier versions, and which settings a run must have in common with its checkpoint."""

from __future__ import annotations

from typing import Any

import pytest

from mtdnn_ds.config.errors import CheckpointError
from mtdnn_ds.runs.state import RunState, check_fit


def test_checkpoints_from_before_idle_heads_fit() -> None:
    """They do not name the setting; a run that freezes heads is another run."""

    class Plan:
        def step_of_state(self, state: Any) -> int:
            return 2

    def state(recipe: dict[str, Any]) -> RunState:
        return RunState(step=2, recipe=recipe, plan={"step": 2}, topology={"world_size": 1, "zero_stage": 2})

    recipe: dict[str, Any] = {"batch": {}, "train": {}, "optimizer": {"lr": 1.0}}
    saved = state(recipe).to_json()
    ours = {**recipe, "optimizer": {"lr": 1.0, "idle_heads": "update"}}
    check_fit("C", saved, state(ours), Plan())  # type: ignore[arg-type]
    ours["optimizer"]["idle_heads"] = "freeze"
    with pytest.raises(CheckpointError, match=r"optimizer\.idle_heads was None when"):
        check_fit("C", saved, state(ours), Plan())  # type: ignore[arg-type]
