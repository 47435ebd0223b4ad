"""The command line: quick help, raw values that survive fire,
exit codes, defaults that are found from anywhere.
"""

from __future__ import annotations

import os
import resource
import subprocess
from pathlib import Path

import pytest
from helpers import warm
from helpers.processes import ROOT

from mtdnn_ds.cli import guarded, main, read_arguments
from mtdnn_ds.commands.verbs import VERBS
from mtdnn_ds.config.errors import DataError, TrainingError

SLACK = 3  # the promise is one second on an idle machine


def run_python(*arguments: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RANK", "SLURM_PROCID", "PYTHONPATH")
    }
    return warm.run(arguments, environment={**clean, **environment}, folder=folder, fresh=True)


@pytest.mark.parametrize(
    "arguments",
    [["-m", "mtdnn_ds", "--help"], ["-m", "mtdnn_ds", "train", "--help"], ["launchers/train.py", "--help"]],
)
def test_help_answers_in_under_a_second(arguments: list[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_python(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and done.stdout.startswith("usage: ")
    seconds = (
        after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    )  # of the processor: other tests may run beside this one
    assert seconds < 1.0 * SLACK


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "deepspeed", "transformers", "datasets", "sklearn", "numpy", "fire")
    code = (
        "import sys; from mtdnn_ds.cli import main; main(['train', '--help']); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert run_python("-c", code).stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_explains_its_flags(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "-h"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m mtdnn_ds {verb} ")
    assert all(f"--{flag.name} " in text for flag in VERBS[verb].flags)
    assert ("--optimizer.lr" in text) == VERBS[verb].takes_settings


def test_no_verb_shows_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb} " in text for verb in VERBS)


def test_values_reach_the_verb_as_they_were_written() -> None:
    words = [
        "--recipe",
        "my#1.yaml",
        "--tasks=cola,rte",
        "--encoder.path",
        "a,b=c#d",
        "--optimizer.lr",
        "1e-4",
        "--train.steps=007",
    ]
    words += ["--data.glue_dir", "[x", "--mixture.rates", "{cola: 2}", "--output-dir", "-3"]
    assert read_arguments(VERBS["train"], words) == {
        "recipe": "my#1.yaml",
        "deepspeed_config": str(ROOT / "ds_configs/zero2.json")
        if Path.cwd() != ROOT
        else "ds_configs/zero2.json",
        "output_dir": "-3",
        "resume": "none",
        "log_level": "warning",
        "overrides": {
            "tasks": "cola,rte",
            "encoder.path": "a,b=c#d",
            "optimizer.lr": "1e-4",
            "train.steps": "007",
            "data.glue_dir": "[x",
            "mixture.rates": "{cola: 2}",
        },
    }


@pytest.mark.parametrize(
    "flag",
    [
        ["--local_rank=1"],
        ["--local_rank", "1"],
        ["--local-rank", "1"],
        ["--deepspeed"],
        ["--deepspeed", "--local_rank=0"],
    ],
)
def test_what_launchers_add_is_ignored(flag: list[str]) -> None:
    assert read_arguments(VERBS["train"], [*flag, "--resume", "none"]) == read_arguments(
        VERBS["train"], ["--resume", "none"]
    )


def test_verbs_get_typed_flags() -> None:
    plan = read_arguments(VERBS["plan"], ["--world_size", "8", "--train.steps", "5"])
    assert (plan["world_size"], plan["overrides"]) == (8, {"train.steps": "5"})
    evaluate = read_arguments(VERBS["evaluate"], ["runs/x", "--checkpoint", "best/cola"])
    assert evaluate == {
        "run_dir": "runs/x",
        "checkpoint": "best/cola",
        "dtype": "auto",
        "log_level": "warning",
    }


def test_defaults_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    here = read_arguments(VERBS["train"], [])
    assert (here["recipe"], here["deepspeed_config"]) == ("recipes/quickstart.yaml", "ds_configs/zero2.json")
    monkeypatch.chdir(tmp_path)
    elsewhere = read_arguments(VERBS["train"], [])
    assert (elsewhere["recipe"], elsewhere["deepspeed_config"]) == (
        str(ROOT / "recipes/quickstart.yaml"),
        str(ROOT / "ds_configs/zero2.json"),
    )


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (DataError(["a.tsv: row 3", "b.tsv: row 4"]), 2, "error: a.tsv: row 3\nerror: b.tsv: row 4\n"),
        (TrainingError("step 5: the loss is not finite"), 1, "error: step 5: the loss is not finite\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
@pytest.mark.parametrize("rank", ["0", "3"])
def test_exit_codes_and_who_speaks(
    error: BaseException,
    code: int,
    text: str,
    rank: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> int:
        raise error

    monkeypatch.setenv("RANK", rank)
    assert guarded(fail) == code
    assert capsys.readouterr().err == (text if rank == "0" else "")


def test_our_own_mistakes_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0)


def test_launcher_works_from_another_directory(tmp_path: Path) -> None:
    done = run_python(str(ROOT / "launchers" / "train.py"), "--train.setps", "1", folder=tmp_path)
    assert done.returncode == 2
    assert "unknown setting '--train.setps'; did you mean '--train.steps'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_tasks_lists_what_is_built_in(capsys: pytest.CaptureFixture[str], real_data: Path) -> None:
    assert main(["tasks", "--data.glue_dir", str(real_data / "glue")]) == 0
    text = capsys.readouterr().out
    (cola,) = [line for line in text.splitlines() if line.split()[:1] == ["cola"]]
    assert cola.split() == [
        "cola",
        "classification",
        "unacceptable,",
        "acceptable",
        "matthews",
        "train",
        "8,551,",
        "dev",
        "1,043,",
        "test",
        "1,063",
    ]
    (stsb,) = [line for line in text.splitlines() if line.split()[:1] == ["stsb"]]
    assert stsb.split()[1:4] == ["regression", "a", "number"]


def test_tasks_of_a_recipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["tasks", "--recipe", "recipes/own_task.yaml", "--tasks", "support"]) == 0
    (support,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["support"]]
    assert support.split() == [
        "support",
        "classification",
        "billing,",
        "delivery,",
        "account",
        "accuracy",
        "train",
        "24,",
        "dev",
        "9",
    ]


def test_prepare_fills_the_cache(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minilm: Path
) -> None:
    monkeypatch.chdir(ROOT)
    words = [
        "prepare",
        "--recipe",
        "recipes/own_task.yaml",
        "--tasks",
        "support",
        "--data.cache_dir",
        str(tmp_path),
        "--encoder.path",
        str(minilm),
    ]
    assert main([*words, "--mixture.rates", "uniform"]) == 0
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == f"2 splits of 1 tasks, 33 rows (0 left out), ready in {tmp_path}"
    )
    assert len(list(tmp_path.glob("support-*/tokens.arrow"))) == 2
