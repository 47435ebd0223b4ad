"""The tables of the study: which runs each compares. Trains nothing, reads no scores.

The numbers here are the protocol (docs/learning.md); they were fixed before the first run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.learning.data import glue_folder, scitail_folder
from benchmarks.learning.runs import StudyRun
from mtdnn_ds.config.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What the command line gives."""

    data: Path
    folder: Path  # of the study
    glue_run: Path | None  # of recipes/glue_small.yaml

    def needed_glue_run(self) -> str:
        if self.glue_run is None:
            raise ConfigError("--glue_run: this table needs a finished run of recipes/glue_small.yaml")
        return str(self.glue_run)


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """One table: its runs for a list of seeds, and how its rows are read."""

    runs: Callable[[Inputs, Sequence[int]], list[StudyRun]]
    scored: tuple[str, ...]  # tasks
    reference: str  # the way that the others are compared with, seed by seed
    seeds: tuple[int, ...]


def _flags(inputs: Inputs, tasks: Sequence[str], steps: int, **more: str) -> dict[str, str]:
    flags = {
        "tasks": ",".join(tasks),
        "train.steps": str(steps),
        "data.glue_dir": str(glue_folder(inputs.data, inputs.folder)),
        "data.cache_dir": str(inputs.folder / "cache"),
    }
    if "stsb" in tasks:
        flags["tasks.stsb.standardize"] = "true"
    return flags | {key.replace("__", "."): value for key, value in more.items()}


def _written(rates: Mapping[str, float]) -> str:
    return "{" + ", ".join(f"{task}: {rate:g}" for task, rate in rates.items()) + "}"


def rte_mnli(inputs: Inputs, seeds: Sequence[int]) -> list[StudyRun]:
    """RTE alone and with MNLI: 234 steps of RTE (three epochs), and as many of MNLI."""
    flags = _flags(inputs, ("rte", "mnli"), 468, mixture__mixing="per_step")
    flags["mixture.rates"] = _written({"rte": 1, "mnli": 1})
    ways = {"alone": {"mixture.only_task": "rte"}, "with mnli": {}}
    return [StudyRun(way=way, seed=seed, flags=flags | own) for seed in seeds for way, own in ways.items()]


# The four small tasks equally often, one task a step, 160 steps of each: the reference of three tables.
_FOUR = ("cola", "stsb", "mrpc", "rte")
_LARGE = ("mnli", "qnli", "sst2")
_STEPS_OF_TASK = 160
_GROUPS = "{single: [cola], pairs: [stsb, mrpc, rte]}"


def _four(inputs: Inputs, **more: str) -> dict[str, str]:
    steps = _STEPS_OF_TASK * len(_FOUR)
    return _flags(inputs, _FOUR, steps, mixture__mixing="per_step", mixture__rates="uniform", **more)


def four_tasks(inputs: Inputs, seeds: Sequence[int]) -> list[StudyRun]:
    """The four tasks, and with as many steps of MNLI, QNLI and SST-2 beside them, a third each."""
    rates = dict.fromkeys(_FOUR, 3.0) | dict.fromkeys(_LARGE, 4.0)
    steps = 2 * _STEPS_OF_TASK * len(_FOUR)
    more = _flags(
        inputs, (*_FOUR, *_LARGE), steps, mixture__mixing="per_step", mixture__rates=_written(rates)
    )
    ways = {"four tasks": _four(inputs), "with three more": more}
    return [StudyRun(way=way, seed=seed, flags=flags) for seed in seeds for way, flags in ways.items()]


def sharing(inputs: Inputs, seeds: Sequence[int]) -> list[StudyRun]:
    """One encoder for all (four_tasks' reference); a copy for single texts and one for pairs; a low-rank
    change for each of both; and one encoder, but a task after the other, scored after each one's block.
    """
    every_block = str(_STEPS_OF_TASK)
    ways = {
        "hard": _four(inputs),
        "soft": _four(inputs, sharing__mode="soft", sharing__groups=_GROUPS),
        "low rank": _four(inputs, sharing__mode="low_rank", sharing__groups=_GROUPS),
        "in turn": {
            **_four(inputs),
            "mixture.mixing": "sequential",
            "train.eval_every": every_block,
        },
    }
    return [StudyRun(way=way, seed=seed, flags=flags) for seed in seeds for way, flags in ways.items()]


def scales(inputs: Inputs, seeds: Sequence[int]) -> list[StudyRun]:
    """Three loss scales, with the four tasks mixed in each step by their sizes."""
    flags = _flags(inputs, _FOUR, 400)
    names = ("examples", "task_mean", "uncertainty")
    return [
        StudyRun(way=name, seed=seed, flags={**flags, "loss.scale": name}) for seed in seeds for name in names
    ]


# Fraction of the training rows -> steps; of SciTail's 2,126 rows 21, 212 and all, of SNLI's 9,999 99 and 999.
_SCITAIL_STEPS = {"0.01": 40, "0.1": 80, "1": 200}
_SNLI_STEPS = {"0.01": 60, "0.1": 120}


def scitail(inputs: Inputs, seeds: Sequence[int]) -> list[StudyRun]:
    """SciTail from 1, 10 and 100 % of its rows: the encoder of a GLUE run, and the plain one."""
    folder = str(scitail_folder(inputs.data, inputs.folder))
    return _adapted(inputs, seeds, "scitail", {"data.scitail_dir": folder}, _SCITAIL_STEPS)


def snli(inputs: Inputs, seeds: Sequence[int]) -> list[StudyRun]:
    """The same with SNLI, which MiniLM has seen."""
    return _adapted(inputs, seeds, "snli", {"data.snli_dir": str(inputs.data / "SNLI")}, _SNLI_STEPS)


def _adapted(
    inputs: Inputs, seeds: Sequence[int], task: str, data: Mapping[str, str], steps_of: Mapping[str, int]
) -> list[StudyRun]:
    """Three samplings of a part of the rows, and one of all of them, with a new head on either side."""
    common = {"tasks": task, "data.cache_dir": str(inputs.folder / "cache"), **data}
    starts = {"plain": {}, "mt-dnn": {"init.run": inputs.needed_glue_run(), "init.heads": "none"}}

    runs = []
    for fraction, steps in steps_of.items():
        samplings = (1,) if fraction == "1" else (1, 2, 3)
        for sampling, seed in itertools.product(samplings, seeds):
            sample = {
                f"tasks.{task}.train_fraction": fraction,
                f"tasks.{task}.sample_seed": str(sampling),
                "train.steps": str(steps),
            }
            runs += [
                StudyRun(
                    way=way,
                    seed=seed,
                    flags=common | sample | own,
                    at={"fraction": fraction, "sampling": sampling},
                )
                for way, own in starts.items()
            ]
    return runs


def one_task(inputs: Inputs, seeds: Sequence[int]) -> list[StudyRun]:
    """RTE and CoLA, each by itself: the plain loss, SMART's smoothness-inducing regulariser (without its
    proximal term), and a student of the multi-task run.
    """
    taught = {"distillation.teachers": inputs.needed_glue_run(), "distillation.checkpoint": "latest"}
    ways = {"plain": {}, "SMART": {"regularizer.name": "smart"}, "taught": taught}
    return [
        StudyRun(way=way, seed=seed, flags=_flags(inputs, (task,), _STEPS_OF_TASK) | own, at={"task": task})
        for task in ("rte", "cola")
        for seed in seeds
        for way, own in ways.items()
    ]


TABLES: Mapping[str, Table] = {
    "rte_mnli": Table(runs=rte_mnli, scored=("rte",), reference="alone", seeds=(1, 2, 3, 4, 5)),
    "scitail": Table(runs=scitail, scored=("scitail",), reference="plain", seeds=(1, 2, 3)),
    "snli": Table(runs=snli, scored=("snli",), reference="plain", seeds=(1,)),
    "four_tasks": Table(runs=four_tasks, scored=_FOUR, reference="four tasks", seeds=(1, 2, 3)),
    "sharing": Table(runs=sharing, scored=_FOUR, reference="hard", seeds=(1, 2, 3)),
    "scales": Table(runs=scales, scored=_FOUR, reference="examples", seeds=(1, 2, 3)),
    "one_task": Table(runs=one_task, scored=("rte", "cola"), reference="plain", seeds=(1, 2, 3)),
}
