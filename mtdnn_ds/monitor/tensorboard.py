"""The board of a run: its TensorBoard event file, layout and HPARAMS row. Knows no record (run_monitor.py).

The event file is written by hand, not by SummaryWriter: that one's thread dies on a full disk, and with it
every later point. Rank 0 only.
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtdnn_ds.files import PatientFile

FLUSH_SECONDS = 10  # an open TensorBoard lags at most this much behind the run


class EventFile:
    """An event file of its own for each process of a run. What a full disk does not take is kept, and written
    later.
    """

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        """TensorBoard hides the events of earlier files from `purge_step` on, else the curves of a resumed
        run would overlap.
        """
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)

        self.folder = folder
        began = time.time()
        number = len(list(folder.iterdir()))  # two files of one process and second
        self._file = PatientFile(
            folder / f"events.out.tfevents.{int(began):010d}.{platform.node()}.{os.getpid()}.{number}"
        )
        self._records = RecordWriter(self._file)
        self._flushed_at = began

        self._add(step=0, file_version="brain.Event:2")
        self._add(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    @property
    def file(self) -> PatientFile:
        return self._file

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        from torch.utils.tensorboard.summary import scalar

        self.add(scalar(tag, value), step)

    def add(self, summary: Any, step: int = 0) -> None:
        self._add(step=step, summary=summary)
        if time.time() - self._flushed_at >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._file.flush()
        self._flushed_at = time.time()

    def close(self) -> None:
        self._file.close()

    def _add(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())


def recipe_summary(recipe_yaml: str) -> Any:
    """The TEXT tab's panel `recipe`, which reads Markdown: an indented block stays as it is, whatever is in
    it.
    """
    from torch.utils.tensorboard.summary import text

    return text("recipe", "".join(f"    {line}\n" for line in recipe_yaml.splitlines()))


def write_projector(
    folder: Path, vectors: np.ndarray, columns: Sequence[str], metadata: Sequence[Sequence[str]]
) -> None:
    """Files of the PROJECTOR tab in the run's board `folder`: `vectors` (E, D) with E rows of `metadata`.
    Raises OSError.

    The config, which names the other two, is renamed into place last.
    """
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    rows = ("\t".join(" ".join(cell.split()) for cell in row) for row in (columns, *metadata))
    (folder / "metadata.tsv").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    (folder / "embeddings.tsv").write_text(
        "".join("\t".join(f"{value:.6g}" for value in row) + "\n" for row in vectors), encoding="utf-8"
    )

    config = ProjectorConfig()
    config.embeddings.add(
        tensor_name="dev rows",
        tensor_shape=list(vectors.shape),
        tensor_path="embeddings.tsv",
        metadata_path="metadata.tsv",
    )
    aside = folder / "projector_config.pbtxt.tmp"
    aside.write_text(text_format.MessageToString(config), encoding="utf-8")
    os.replace(aside, folder / "projector_config.pbtxt")


def board_layout(
    task_metrics: Mapping[str, Sequence[str]], *, has_task_norms: bool
) -> dict[str, dict[str, list[Any]]]:
    """TensorBoard's CUSTOM SCALARS page: all tasks' losses in one chart, all main dev metrics in one, all
    their gradient norms where they are measured, then speed and balance.
    """
    losses = ["loss", *(f"loss/{task}" for task in task_metrics)]
    main_metrics = [
        "eval/average",
        *(f"eval/{task}/{metrics[0]}" for task, metrics in task_metrics.items() if metrics),
    ]

    of_tasks = {
        "loss of every task": _chart(losses),
        "main dev metric of every task": _chart(main_metrics),
    }
    if has_task_norms:
        tags = [f"task_grad_norm/{task}" for task in task_metrics]
        of_tasks["gradient norm of every task in the encoder"] = _chart(tags)

    return {
        "Tasks": of_tasks,
        "Throughput and balance": {
            "tokens per second": _chart(["tokens_per_second"]),
            "fraction of peak FLOP/s": _chart(["mfu"]),
            "padding efficiency, time waiting for data": _chart(["padding_efficiency", "wait_fraction"]),
            "rank imbalance": _chart(["rank_imbalance"]),
            "examples of every task": _chart([f"examples/{task}" for task in task_metrics]),
        },
    }


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """`{"train": {"steps": 3, "epochs": None}}` -> `{"train.steps": 3}`; a list becomes its JSON text, None
    is left out.
    """
    flat: dict[str, bool | int | float | str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(flat_settings(value, f"{prefix}{name}."))
        elif isinstance(value, (bool, int, float, str)):
            flat[prefix + name] = value
        elif value is not None:
            flat[prefix + name] = json.dumps(value)
    return flat


def _chart(tags: Sequence[str]) -> list[Any]:
    # TensorBoard reads each tag as a regular expression and matches it at the start: unanchored, "loss" would
    # draw loss/* too.
    return ["Multiline", [f"{re.escape(tag)}$" for tag in tags]]


def start_summaries(
    run_name: str, settings: Mapping[str, bool | int | float | str], task_metrics: Mapping[str, Sequence[str]]
) -> list[Any]:
    """The HPARAMS tab's columns and this run's row. Final metrics need no copy: the tab reads the last point
    of each eval curve.
    """
    # Protocol buffers by hand: tensorboard.plugins.hparams.api imports TensorFlow, and torch's hparams()
    # turns booleans into 0 and 1.
    from google.protobuf.struct_pb2 import Value
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    def value(setting: bool | int | float | str) -> Value:
        if isinstance(setting, bool):  # before int: True is an int in Python
            return Value(bool_value=setting)
        if isinstance(setting, str):
            return Value(string_value=setting)
        return Value(number_value=setting)

    types = {
        bool: api_pb2.DATA_TYPE_BOOL,
        int: api_pb2.DATA_TYPE_FLOAT64,
        float: api_pb2.DATA_TYPE_FLOAT64,
        str: api_pb2.DATA_TYPE_STRING,
    }
    tags = [
        "eval/average",
        *(f"eval/{task}/{metric}" for task, metrics in task_metrics.items() for metric in metrics),
    ]

    columns = api_pb2.Experiment(
        hparam_infos=[
            api_pb2.HParamInfo(name=name, type=types[type(setting)]) for name, setting in settings.items()
        ],
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in tags],
    )
    row = plugin_data_pb2.SessionStartInfo(
        hparams={name: value(setting) for name, setting in settings.items()},
        group_name=run_name,
        start_time_secs=time.time(),
    )

    return [
        _hparams_summary(metadata.EXPERIMENT_TAG, plugin_data_pb2.HParamsPluginData(experiment=columns)),
        _hparams_summary(
            metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=row)
        ),
    ]


def end_summary(succeeded: bool) -> Any:
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    status = api_pb2.STATUS_FAILURE
    if succeeded:
        status = api_pb2.STATUS_SUCCESS
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    return _hparams_summary(
        metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=end)
    )


def _hparams_summary(tag: str, data: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata

    return Summary(
        value=[
            Summary.Value(
                tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR
            )
        ]
    )
