"""train.dropout=counter in real runs: with dropout on, every kind of task loses the same on any ranks, ZeRO
stage, cut, and after a kill.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.fault_runs import die_at, evaluations, exact
from helpers.mixture_files import write_mixture
from helpers.processes import run_jobs, training_lines, write_json, zero_config
from helpers.tiny_encoders import write_tiny_encoder

pytestmark = pytest.mark.slow

STEPS = 4
TOLERANCE = 1e-4  # relative, fp32
CUT = {"batch.max_tokens_per_micro_batch": "640"}
RECOMPUTED = {**CUT, "encoder.gradient_checkpointing": "true"}
SMART = {"regularizer.name": "smart"}
R_DROP = {"regularizer.name": "r_drop"}
FREELB = {"regularizer.name": "freelb"}
SOFT = {"sharing.mode": "soft"}
LOW_RANK = {"sharing.mode": "low_rank", "sharing.rank": "2"}
# name: ranks, ZeRO stage, overrides; runs of one group (what stands before the dot) lose the same.
RUNS: dict[str, tuple[int, int, dict[str, str]]] = {
    "plain.1_zero0": (1, 0, {}),
    "plain.1_zero1_cut": (1, 1, CUT),
    "plain.1_zero2_recomputed": (1, 2, {**RECOMPUTED, "batch.max_tokens_per_micro_batch": "400"}),
    "plain.1_zero3_padded": (1, 3, {"encoder.attention": "padded"}),
    "plain.2_zero0_cut": (2, 0, CUT),
    "plain.2_zero1": (2, 1, {}),
    "plain.2_zero2_cut": (2, 2, CUT),
    "plain.2_zero3_recomputed": (2, 3, RECOMPUTED),
    "smart.1_zero0": (1, 0, SMART),
    "smart.2_zero3_recomputed": (2, 3, {**SMART, **RECOMPUTED}),
    "r_drop.1_zero2_recomputed": (1, 2, {**R_DROP, **RECOMPUTED}),
    "r_drop.2_zero1": (2, 1, R_DROP),
    "freelb.1_zero1": (1, 1, FREELB),
    "freelb.2_zero2_cut": (2, 2, {**FREELB, **CUT}),
    "soft.1_zero1": (1, 1, SOFT),
    "soft.2_zero3_recomputed": (2, 3, {**SOFT, **RECOMPUTED}),
    "low_rank.1_zero1": (1, 1, LOW_RANK),
    "low_rank.2_zero2_recomputed": (2, 2, {**LOW_RANK, **RECOMPUTED}),
    "none.1_zero0": (1, 0, {"train.dropout": "none"}),
    "other_seed.1_zero0": (1, 0, {"train.seed": "6"}),
}
FIRST = {name.split(".")[0]: name for name in reversed(RUNS)}
KILLED = "plain.1_zero2_recomputed"  # the run that is killed before step 4, too, in a folder of its own


def write_recipes(folder: Path, official_files: Path, minilm: Path) -> None:
    """Recipes and DeepSpeed JSONs.

    Weights larger than BERT's first ones, so that dropout changes losses by far more than rounding.
    """
    encoder = write_tiny_encoder(folder / "encoder", minilm, initializer_range=0.08)
    tasks = write_mixture(official_files, folder)
    tasks["cola"] = {"dropout": 0.3}
    recipe = {
        "encoder": {"path": str(encoder), "max_length": 48},
        "tasks": tasks,
        "mixture": {"rates": "uniform"},
        "batch": {"examples_per_step": 44, "max_tokens_per_micro_batch": 8192},
        "optimizer": {"name": "adamw", "lr": 1e-3, "gradient_clipping": 1.0},
        "schedule": {"name": "constant", "warmup": 0},
        "train": {"steps": STEPS, "dropout": "counter", "seed": 5},
        "data": {"glue_dir": str(folder / "glue"), "cache_dir": str(folder / "cache")},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    shared = {**recipe, "sharing": {"groups": {"first": list(tasks)[:5], "second": list(tasks)[5:]}}}
    (folder / "shared.yaml").write_text(yaml.safe_dump(shared, sort_keys=False))
    for stage in range(4):
        write_json(folder / f"zero{stage}.json", zero_config(stage))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, official_files: Path, minilm: Path) -> Path:
    """Every run in a folder of its name; one killed and resumed as it was (`killed`) and elsewhere
    (`elsewhere`).
    """
    folder = tmp_path_factory.mktemp("counter")
    write_recipes(folder, official_files, minilm)
    killed = job_of(folder, KILLED, output_dir=str(folder / "killed"))
    killed["overrides"] = {**killed["overrides"], "train.save_every": "2"}
    die_at("before_step_4", killed, folder, 1)
    assert [line["step"] for line in training_lines(folder / "killed")] == [1, 2, 3]
    shutil.copytree(folder / "killed", folder / "elsewhere")
    elsewhere = job_of(folder, "plain.2_zero1", output_dir=str(folder / "elsewhere"))
    for ranks, job in ((1, killed), (2, elsewhere)):
        jobs = [
            {**job, "resume": "auto"},
            *(job_of(folder, name) for name, run in RUNS.items() if run[0] == ranks),
        ]
        said = run_jobs(jobs, folder, ranks)[Path(job["output_dir"]).name]
        assert f"resuming after step 2 of {STEPS}" in said and ("2 ranks instead of 1" in said) == (
            ranks == 2
        )
    return folder


def job_of(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    _, stage, overrides = RUNS[name]
    recipe = "shared" if "sharing.mode" in overrides else "recipe"
    job = {
        "recipe": f"{folder}/{recipe}.yaml",
        "deepspeed_config": f"{folder}/zero{stage}.json",
        "output_dir": str(folder / name),
    }
    return {**job, "overrides": overrides, **changes}


def assert_same(ours: Path, theirs: Path, tolerance: float = TOLERANCE) -> None:
    mine, expected = training_lines(ours), training_lines(theirs)
    assert [line["step"] for line in mine] == list(range(1, STEPS + 1)) == [line["step"] for line in expected]
    for line, other in zip(mine, expected, strict=True):
        for field in ("loss", "grad_norm", *(("regularizer",) if "regularizer" in other else ())):
            assert line[field] == pytest.approx(other[field], rel=tolerance), (
                f"{ours.name} {field} of step {line['step']}"
            )
        assert line["task_loss"] == pytest.approx(other["task_loss"], rel=tolerance, abs=tolerance), (
            f"{ours.name} step {line['step']}"
        )


@pytest.mark.distributed
@pytest.mark.parametrize("name", [name for name in RUNS if name not in FIRST.values()])
def test_dropout_does_not_depend_on_how_the_step_is_cut(folder: Path, name: str) -> None:
    assert_same(folder / name, folder / FIRST[name.split(".")[0]])


@pytest.mark.distributed
def test_there_is_dropout_and_the_runs_are_really_cut_differently(folder: Path) -> None:
    first = {name: training_lines(folder / run)[0] for name, run in FIRST.items()}
    for name in ("none", "other_seed"):
        losses = [
            abs(first["plain"]["task_loss"][task] / loss - 1)
            for task, loss in first[name]["task_loss"].items()
        ]
        assert sorted(losses)[2] > 10 * TOLERANCE, f"{name}: tasks' losses hardly change: {losses}"
        assert abs(first["plain"]["grad_norm"] / first[name]["grad_norm"] - 1) > 100 * TOLERANCE
    assert first["r_drop"]["regularizer"] > 0.005, "two passes with masks of their own differ"
    counts = {name: min(line["micro_batches"] for line in training_lines(folder / name)) for name in RUNS}
    assert counts["plain.1_zero0"] == 1 and counts[KILLED] >= 4 and counts["plain.2_zero2_cut"] >= 2


@pytest.mark.distributed
def test_resume_is_bitwise(folder: Path) -> None:
    killed, straight = folder / "killed", folder / KILLED
    assert exact(killed) == exact(straight)
    assert evaluations(killed) == evaluations(straight) and len(evaluations(killed)) == 1


@pytest.mark.distributed
def test_a_run_resumed_on_more_ranks_another_stage_and_budget_goes_on_as_before(folder: Path) -> None:
    assert [line["micro_batches"] for line in training_lines(folder / "elsewhere")][2:] == [1, 1]
    assert_same(folder / "elsewhere", folder / KILLED)


@pytest.mark.bars
@pytest.mark.distributed
def test_four_ranks_lose_the_same(folder: Path) -> None:
    job = {**job_of(folder, "plain.2_zero2_cut"), "output_dir": str(folder / "ranks4")}
    run_jobs([job], folder, 4)
    assert_same(folder / "ranks4", folder / FIRST["plain"])
