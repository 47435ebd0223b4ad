"""A trained model as it is opened for use: a run folder with one of its checkpoints, or an exported folder of the whole model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtdnn_ds.train.loaded_run import LoadedRun, find_run, load_run

if TYPE_CHECKING:
    import torch


def open_model(path: str, checkpoint: str = "best/average", *, device: torch.device) -> LoadedRun:
    """The model in `path`, in float32 and in evaluation mode. Raises ConfigError and CheckpointError in the words of the command line."""
    loaded = load_run(find_run(path, checkpoint, run_setting="MODEL"), device=device)
    loaded.model.eval()
    return loaded
