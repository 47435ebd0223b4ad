"""The functions of mtdnn_ds.api do what the commands do, several times in one process;
the example script works as a user runs it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from helpers.fault_runs import exact, write_run_files
from helpers.processes import ROOT, run_command

from mtdnn_ds.api import train
from mtdnn_ds.config.errors import ConfigError

SCRIPT = """
import json, sys
from pathlib import Path
import torch, yaml
from mtdnn_ds.api import evaluate, train

base = Path(sys.argv[1])
recipe = yaml.safe_load((base / "recipe.yaml").read_text())
deepspeed = json.loads((base / "zero2.json").read_text())
zero2 = base / "zero2.json"
first = train(
    str(base / "recipe.yaml"), base / "from_file", deepspeed_config=zero2, settings={"train.steps": 6}
)
settings = {"train.steps": 3, "train.save_every": 3}
second = train(recipe, base / "from_dict", deepspeed_config=deepspeed, settings=settings)
try:
    train(recipe, second)
except Exception as error:
    refused = f"{type(error).__name__}: {error}"
result = evaluate(first, checkpoint="latest")
said = {"folders": [str(first), str(second)], "refused": refused, "metrics": result.metrics}
print(json.dumps({**said, "joined": torch.distributed.is_initialized()}))
"""


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory, official_files: Path, tiny_encoder: Path) -> Path:
    return write_run_files(tmp_path_factory.mktemp("api"), official_files, tiny_encoder)


@pytest.mark.distributed
def test_runs_follow_each_other_in_one_process_and_equal_those_of_the_command(run_files: Path) -> None:
    ended = run_command(["-c", SCRIPT, str(run_files)])
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout.splitlines()[-1])
    assert said["folders"] == [str(run_files / "from_file"), str(run_files / "from_dict")]
    assert said["refused"] == (
        f"ConfigError: --output_dir {run_files}/from_dict: is not empty; "
        "add --resume auto to go on with that run, or give another --output_dir"
    )
    assert said["joined"] is False
    arguments = [
        "--recipe",
        str(run_files / "recipe.yaml"),
        "--deepspeed_config",
        str(run_files / "zero2.json"),
        "--output_dir",
        str(run_files / "command"),
    ]
    ended = run_command(["-m", "mtdnn_ds", "train", *arguments, "--train.steps", "6"])
    assert ended.returncode == 0, ended.stderr
    assert (
        exact(run_files / "from_file") == exact(run_files / "command")
        and len(exact(run_files / "command")) == 6
    )
    assert [line["step"] for line in exact(run_files / "from_dict")] == [1, 2, 3]
    last = [
        json.loads(line)
        for line in (run_files / "command/metrics.jsonl").read_text().splitlines()
        if '"eval"' in line
    ][-1]
    for task, metrics in last["eval"].items():
        assert said["metrics"][task] == pytest.approx(metrics, abs=1e-6)


def test_a_wrong_recipe_is_refused_with_all_its_problems(run_files: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load((run_files / "recipe.yaml").read_text())
    recipe["train"]["stepps"] = 3
    with pytest.raises(
        ConfigError,
        match=(
            r"(?s)'--optimizer.lrr'; did you mean '--optimizer.lr'.*recipe: unknown setting 'train.stepps'; "
            r"did you mean 'train.steps'"
        ),
    ):
        train(recipe, tmp_path / "run", settings={"optimizer.lrr": 1e-3})
    assert not (tmp_path / "run").exists()


@pytest.mark.distributed
def test_the_example_script_works(tiny_encoder: Path, tmp_path: Path) -> None:
    ended = run_command(
        [
            str(ROOT / "examples/own_data.py"),
            "--encoder",
            str(tiny_encoder),
            "--output_dir",
            str(tmp_path / "run"),
        ]
    )
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout.splitlines()
    assert any(line.startswith("accuracy on the dev rows: 0.") for line in said)
    assert [line.split(" -> ")[0] for line in said if " -> " in line] == [
        "Where is my parcel?",
        "I forgot my password",
    ]
    (exported,) = [line.removeprefix("exported: ") for line in said if line.startswith("exported: ")]
    assert (Path(exported) / "model.safetensors").is_file()
