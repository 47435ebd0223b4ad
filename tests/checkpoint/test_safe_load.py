"""Nothing from a file is executed: malicious checkpoints are refused before anything of them runs, and the
source has no other way in.
"""

from __future__ import annotations

import ast
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from helpers.fault_runs import Outcome, run_forked, scenario, write_run_files
from helpers.processes import ROOT, write_json, zero_config

from mtdnn_ds import cli
from mtdnn_ds.checkpoint.manifest import write_manifest
from mtdnn_ds.checkpoint.safe_load import FORCE, load, refusals, safe_loads
from mtdnn_ds.config.errors import CheckpointError

STAGES = (2, 3)
SHARDS = {2: "zero_pp_rank_1_mp_rank_00_optim_states.pt", 3: "zero_pp_rank_1_mp_rank_00_model_states.pt"}


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


@pytest.fixture
def sign(tmp_path: Path) -> Path:
    """The file that malicious code would create."""
    return tmp_path / "ran"


def refused(file: Path) -> str:
    return (
        f"{file}: asks for posix.system, which no checkpoint of a run holds and which could run code; "
        f"it was not loaded"
    )


def test_a_malicious_pickle_is_refused_and_named(tmp_path: Path, sign: Path) -> None:
    file = tmp_path / "shard.pt"
    torch.save({"module": {"weight": torch.ones(2)}, "extra": Evil(sign)}, file)
    with pytest.raises(CheckpointError) as error:
        load(file)
    assert str(error.value).startswith(refused(file))
    assert refusals([file]) == list(error.value.problems)
    assert not sign.exists()
    torch.load(file, weights_only=False)
    assert sign.exists(), "the file is dangerous for those who read it carelessly"


def test_a_bare_pickle_is_refused(tmp_path: Path, sign: Path) -> None:
    file = tmp_path / "shard.pt"
    file.write_bytes(pickle.dumps(Evil(sign)))
    with pytest.raises(CheckpointError, match=r"shard\.pt: is no file of a checkpoint"):
        load(file)
    assert not sign.exists()


def test_loads_of_others_are_safe_inside_the_block_and_as_before_after_it(
    tmp_path: Path, sign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(Evil(sign), tmp_path / "shard.pt")
    with pytest.raises(CheckpointError) as error, safe_loads(tmp_path):
        torch.load(tmp_path / "shard.pt", weights_only=False)
    assert str(error.value).startswith(refused(tmp_path / "shard.pt"))
    assert not sign.exists()
    assert FORCE not in os.environ and os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"


def test_a_loss_scaler_of_fp16_is_allowed(tmp_path: Path) -> None:
    scaler = DynamicLossScaler(
        init_scale=512, scale_window=1000, min_scale=1, delayed_shift=2, consecutive_hysteresis=False
    )
    torch.save({"loss_scaler": scaler}, tmp_path / "shard.pt")
    assert load(tmp_path / "shard.pt")["loss_scaler"].cur_scale == 512


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory, official_files: Path, tiny_encoder: Path) -> Path:
    """Two runs, of ZeRO 2 and 3, whose checkpoints then are made malicious; their manifests are right."""
    folder = write_run_files(
        tmp_path_factory.mktemp("malicious"),
        official_files,
        tiny_encoder,
        steps=2,
        save_every=0,
        eval_every=0,
    )
    write_json(folder / "zero3.json", zero_config(3))
    ended = run_forked({str(stage): of_stage(folder, stage) for stage in STAGES}, folder)
    assert [outcome.codes for outcome in ended.values()] == [[0, 0], [0, 0]], ended
    for stage in STAGES:
        for shard in {SHARDS[stage], "mp_rank_00_model_states.pt" if stage == 2 else SHARDS[stage]}:
            file = folder / f"run_{stage}" / "checkpoints" / "step_2" / shard
            torch.save({**load(file), "extra": Evil(folder / "ran")}, file)
        write_manifest(file.parent)
    return folder


def of_stage(folder: Path, stage: int, **changes: str) -> dict[str, Any]:
    return scenario(
        folder, f"run_{stage}", **{"deepspeed_config": str(folder / f"zero{stage}.json"), **changes}
    )


@pytest.fixture(scope="module")
def outcomes(run_files: Path) -> dict[str, Outcome]:
    runs = {f"resume_{stage}": of_stage(run_files, stage, resume="auto") for stage in STAGES}
    runs["resume_elsewhere"] = {**of_stage(run_files, 2, resume="auto"), "world_size": 1}
    runs["init"] = scenario(run_files, "init", init__run=str(run_files / "run_2"), init__checkpoint="latest")
    return run_forked(runs, run_files)


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["resume_2", "resume_3", "resume_elsewhere", "init"])
def test_a_run_refuses_a_malicious_checkpoint_before_anything_runs(
    run_files: Path, outcomes: dict[str, Outcome], name: str
) -> None:
    ended, stage = outcomes[name], 3 if name == "resume_3" else 2
    assert set(ended.codes) == {2}, ended.said
    assert (
        "asks for posix.system, which no checkpoint of a run holds and which could run code; it was not "
        "loaded" in ended.said[0]
    )
    assert f"{run_files}/run_{stage}/checkpoints/step_2/" in ended.said[0]
    assert "Traceback" not in "".join(ended.said)
    assert not (run_files / "ran").exists()


@pytest.mark.distributed
@pytest.mark.parametrize("stage", STAGES)
def test_evaluate_refuses_a_malicious_checkpoint(
    run_files: Path, outcomes: dict[str, Outcome], stage: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", "--run_dir", str(run_files / f"run_{stage}"), "--checkpoint", "latest"]) == 2
    assert "asks for posix.system" in capfd.readouterr().err
    assert not (run_files / "ran").exists()


# What could execute or unpickle what a file holds, and the one place of each that is meant to.
DANGEROUS = {
    "eval": (),
    "exec": ("mtdnn_ds/tasks/plugins.py",),  # code that the user names as code
    "compile": ("mtdnn_ds/tasks/plugins.py",),
    "__import__": (),
    "os.system": (),
    "os.popen": (),
    "pickle.load": (),
    "pickle.loads": (),
    "pickle.Unpickler": (),
    "marshal.loads": (),
    "shelve.open": (),
    "joblib.load": (),
    "pandas.read_pickle": (),
    "pd.read_pickle": (),
    "torch.load": ("mtdnn_ds/checkpoint/safe_load.py",),
    "yaml.load": (),
    "yaml.unsafe_load": (),
    "yaml.full_load": (),
}
KEYWORDS = ("trust_remote_code", "allow_pickle", "shell")  # never the constant True


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def sources() -> list[Path]:
    return sorted(
        path for folder in ("mtdnn_ds", "launchers", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    )


def test_the_source_executes_and_unpickles_nothing_but_in_the_places_that_check() -> None:
    found = []
    for path in sources():
        name = path.relative_to(ROOT).as_posix()
        for call in calls(path):
            called = ast.unparse(call.func)
            if name not in DANGEROUS.get(called, (name,)):
                found.append(f"{name}:{call.lineno}: {called}")
            found += [
                f"{name}:{call.lineno}: {keyword.arg}=True"
                for keyword in call.keywords
                if keyword.arg in KEYWORDS and isinstance(keyword.value, ast.Constant) and keyword.value.value
            ]
    assert found == []


def test_yaml_is_read_without_making_objects() -> None:
    from mtdnn_ds.config.errors import ConfigError
    from mtdnn_ds.config.load import load_recipe

    text = "tasks: !!python/object/apply:os.system ['touch ran']\n"
    file = ROOT / "ran.yaml"
    try:
        file.write_text(text)
        with pytest.raises(ConfigError):
            load_recipe(str(file), {})
    finally:
        file.unlink()
    assert not (ROOT / "ran").exists()


def test_tensorboard_as_it_is_printed_listens_on_this_machine_only() -> None:
    printed = [*sources(), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    assert [path for path in printed if "--bind_all" in path.read_text() and path.name != "security.md"] == []
    code = (
        "import sys; from tensorboard.plugins.core import core_plugin; import argparse; parser = "
        "argparse.ArgumentParser();"
        "core_plugin.CorePluginLoader().define_flags(parser); flags = parser.parse_args(['--logdir', "
        "'x']); print(flags.bind_all, flags.host)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split("\n")[0] == "False None"  # no host is localhost: core_plugin says so in --host's help
