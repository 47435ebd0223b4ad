"""The tables of the study: which runs each compares. Trains nothing, reads no scores.

The numbers here are the protocol (docs/learning.md); they were fixed before the first run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.learning.data import glue_folder, scitail_folder
from benchmarks.learning.runs import StudyRun
from mtdnn_ds.config.errors import ConfigError

SMALL = {"cola": 8551, "mrpc": 3668, "stsb": 5749, "rte": 2490}  # training rows
LARGE = ("mnli", "qnli", "sst2")


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


def four_tasks(inputs: Inputs, seeds: Sequence[int]) -> list[StudyRun]:
    """The four small tasks of GLUE for three epochs, and with as many steps of MNLI, QNLI and SST-2."""
    steps = 3 * sum(SMALL.values()) // 32
    share = sum(SMALL.values()) / len(LARGE)
    ways = {
        "four tasks": _flags(inputs, tuple(SMALL), steps, mixture__rates=_written(SMALL)),
        "with three more": _flags(
            inputs,
            (*SMALL, *LARGE),
            2 * steps,
            mixture__rates=_written({**SMALL, **dict.fromkeys(LARGE, share)}),
        ),
    }
    return [
        StudyRun(way=way, seed=seed, flags={**flags, "mixture.mixing": "per_step"})
        for seed in seeds
        for way, flags in ways.items()
    ]


# Of SciTail's 2,126 rows: 21, 212 and all.
_STEPS_OF_FRACTION = {"0.01": 40, "0.1": 80, "1": 200}


def scitail(inputs: Inputs, seeds: Sequence[int]) -> list[StudyRun]:
    """SciTail from 1, 10 and 100 % of its rows: the encoder of a GLUE run, and the plain one."""
    common = {
        "tasks": "scitail",
        "data.scitail_dir": str(scitail_folder(inputs.data, inputs.folder)),
        "data.cache_dir": str(inputs.folder / "cache"),
    }
    starts = {"plain": {}, "mt-dnn": {"init.run": inputs.needed_glue_run(), "init.heads": "none"}}

    runs = []
    for fraction, steps in _STEPS_OF_FRACTION.items():
        for sampling in (1, 2, 3):
            sample = {"tasks.scitail.train_fraction": fraction, "tasks.scitail.sample_seed": str(sampling)}
            for seed in seeds:
                runs += [
                    StudyRun(
                        way=way,
                        seed=seed,
                        flags={**common, **sample, **own, "train.steps": str(steps)},
                        at={"fraction": fraction, "sampling": sampling},
                    )
                    for way, own in starts.items()
                ]
    return runs


# Four tasks, equally often, 240 steps' worth of each.
_ORDER = ("cola", "stsb", "mrpc", "rte")
_FOUR_STEPS = 960
_GROUPS = "{single: [cola], pairs: [stsb, mrpc, rte]}"


def sharing(inputs: Inputs, seeds: Sequence[int]) -> list[StudyRun]:
    """One encoder for all, a copy for single texts and one for pairs, a low-rank change for each of both."""
    flags = _flags(inputs, _ORDER, _FOUR_STEPS, mixture__rates="uniform")
    ways = {
        "hard": {},
        "soft": {"sharing.mode": "soft", "sharing.groups": _GROUPS},
        "low rank": {"sharing.mode": "low_rank", "sharing.groups": _GROUPS},
    }
    return [StudyRun(way=way, seed=seed, flags=flags | own) for seed in seeds for way, own in ways.items()]


def order(inputs: Inputs, seeds: Sequence[int]) -> list[StudyRun]:
    """The four tasks mixed, and one after the other, scored after each one's block of 240 steps."""
    flags = _flags(inputs, _ORDER, _FOUR_STEPS, mixture__rates="uniform")
    in_turn = {"mixture.mixing": "sequential", "train.eval_every": str(_FOUR_STEPS // len(_ORDER))}
    ways = {"mixed": {}, "sequential": in_turn}
    return [StudyRun(way=way, seed=seed, flags=flags | own) for seed in seeds for way, own in ways.items()]


def scales(inputs: Inputs, seeds: Sequence[int]) -> list[StudyRun]:
    """Three loss scales, with the tasks drawn by their sizes: with equal rates the first two are one."""
    flags = _flags(inputs, _ORDER, _FOUR_STEPS)
    names = ("examples", "task_mean", "uncertainty")
    return [
        StudyRun(way=name, seed=seed, flags={**flags, "loss.scale": name}) for seed in seeds for name in names
    ]


def _each_alone(
    inputs: Inputs, seeds: Sequence[int], ways: Mapping[str, Mapping[str, str]]
) -> list[StudyRun]:
    """RTE for three epochs and CoLA for one, each by itself."""
    return [
        StudyRun(way=way, seed=seed, flags=_flags(inputs, (task,), steps) | dict(own), at={"task": task})
        for task, steps in (("rte", 234), ("cola", 267))
        for seed in seeds
        for way, own in ways.items()
    ]


def smart(inputs: Inputs, seeds: Sequence[int]) -> list[StudyRun]:
    """SMART's smoothness-inducing regulariser, without its proximal term, against the plain loss."""
    return _each_alone(inputs, seeds, {"plain": {}, "SMART": {"regularizer.name": "smart"}})


def distillation(inputs: Inputs, seeds: Sequence[int]) -> list[StudyRun]:
    """A student of the multi-task run against one that learns from the labels alone."""
    taught = {"distillation.teachers": inputs.needed_glue_run(), "distillation.checkpoint": "latest"}
    return _each_alone(inputs, seeds, {"plain": {}, "taught": taught})


TABLES: Mapping[str, Table] = {
    "rte_mnli": Table(runs=rte_mnli, scored=("rte",), reference="alone", seeds=(1, 2, 3, 4, 5)),
    "scitail": Table(runs=scitail, scored=("scitail",), reference="plain", seeds=(1, 2, 3)),
    "four_tasks": Table(runs=four_tasks, scored=tuple(SMALL), reference="four tasks", seeds=(1, 2, 3)),
    "sharing": Table(runs=sharing, scored=_ORDER, reference="hard", seeds=(1, 2, 3)),
    "order": Table(runs=order, scored=_ORDER, reference="mixed", seeds=(1, 2, 3)),
    "scales": Table(runs=scales, scored=_ORDER, reference="examples", seeds=(1, 2, 3)),
    "smart": Table(runs=smart, scored=("rte", "cola"), reference="plain", seeds=(1, 2, 3)),
    "distillation": Table(runs=distillation, scored=("rte", "cola"), reference="plain", seeds=(1, 2, 3)),
}
