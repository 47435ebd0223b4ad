"""The runs of a table, trained one after the other, and the file that keeps what they scored. No statistics.

A table's results are one JSON line a run, in a file that is committed: a run that has its line is not trained
again, on any machine, nor one whose settings another table has trained. A line belongs to the run's settings,
paths of data and runs left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mtdnn_ds import dist
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.experiments.trials import Trial, run_trials
from mtdnn_ds.faults.watchdog.watch import watching
from mtdnn_ds.runs.folder import RunFolder
from mtdnn_ds.runs.setup import settings_dict
from mtdnn_ds.runs.state import flat
from mtdnn_ds.train.engine import start_distributed, stop_distributed
from mtdnn_ds.train.preflight.checks import CheckedRun, Problems, checked_run

RECIPE = Path(__file__).parent / "study.yaml"
_PATHS = ("data.", "init.run", "distillation.teachers")


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRun:
    """One run of a table: the study's recipe with `flags`."""

    way: str  # what is compared
    seed: int
    flags: Mapping[str, str]
    at: Mapping[str, str | int] = field(default_factory=dict)  # where it stands beside others of its way

    @property
    def name(self) -> str:
        places = "".join(f"_{key}_{value}" for key, value in self.at.items())
        return f"{self.way}{places}_seed_{self.seed}".replace(" ", "_")


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a run scored after its last step, and what it took."""

    name: str
    way: str
    seed: int
    at: Mapping[str, str | int]
    settings: str  # digest of the recipe
    scores: Mapping[str, Mapping[str, float]]  # task -> metric -> value
    steps: int
    tokens: int
    seconds: float
    precision: str
    # step -> task -> metric -> value, of evaluations before the last one
    earlier: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)


def run_table(
    runs: Sequence[StudyRun], *, folder: Path, results: Path, deepspeed_config: str
) -> list[Result]:
    """Train every run that has no line in `results` yet; the results of all, in their order. Collective.

    Raises ConfigError before the first run, with the problems of all.
    """
    problems = Problems()
    checked: list[tuple[StudyRun, CheckedRun]] = []
    for run in runs:
        one = problems.check(lambda run=run: _checked(run, deepspeed_config))
        if one is not None:
            checked.append((run, one))
    problems.refuse()

    start_distributed()
    with watching(checked[0][1].recipe.train.stall_timeout):
        done = [_result_of(run, one, folder, results) for run, one in checked]
    stop_distributed()
    return done


def _checked(run: StudyRun, deepspeed_config: str) -> CheckedRun:
    flags = {**run.flags, "train.seed": str(run.seed)}
    return checked_run(str(RECIPE), deepspeed_config, flags, world_size=dist.world_size())


def _result_of(run: StudyRun, checked: CheckedRun, folder: Path, results: Path) -> Result:
    settings = _digest(checked)
    known = dist.on_main(lambda: read_results(results).get(run.name))
    if known is not None:
        if known.settings != settings:
            raise ConfigError(
                f"{results}: {run.name} was measured with other settings; remove its line to measure it again"
            )
        return known

    twin = dist.on_main(lambda: _with_settings(settings, results.parent))
    if twin is not None:
        result = replace(twin, name=run.name, way=run.way, at=run.at)
        dist.on_main(lambda: append_result(results, result))
        return result

    trial = Trial(name=run.name, title=run.name, run=checked)
    run_trials([trial], folder)
    result = dist.on_main(lambda: _read_run(run, settings, RunFolder(folder / run.name)))
    dist.on_main(lambda: append_result(results, result))
    return result


def _digest(checked: CheckedRun) -> str:
    settings = {
        key: value
        for key, value in flat(settings_dict(checked.recipe)).items()
        if not key.startswith(_PATHS) or key == "data.drop_leaked_rows"
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _with_settings(settings: str, folder: Path) -> Result | None:
    """A result of another table whose run had the same settings."""
    for file in sorted(folder.glob("*.jsonl")):
        for result in read_results(file).values():
            if result.settings == settings:
                return result
    return None


def _read_run(run: StudyRun, settings: str, folder: RunFolder) -> Result:
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    *earlier, last = [line for line in lines if "eval" in line]
    environment = json.loads((folder.path / "environment.json").read_text())
    return Result(
        name=run.name,
        way=run.way,
        seed=run.seed,
        at=run.at,
        settings=settings,
        scores=last["eval"],
        earlier={str(line["step"]): line["eval"] for line in earlier},
        steps=steps[-1]["step"],
        tokens=sum(line["tokens"] for line in steps),
        seconds=round(sum(line["seconds"] for line in steps), 1),
        precision=environment["topology"]["precision"],
    )


def read_results(path: Path) -> dict[str, Result]:
    """Every result of a file by its run's name; empty without the file."""
    if not path.is_file():
        return {}
    found = (Result(**json.loads(line)) for line in path.read_text().splitlines())
    return {result.name: result for result in found}


def append_result(path: Path, result: Result) -> None:
    """Add a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_rounded(asdict(result))) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return value
