"""Disks that fail while a run saves: full, limited, read-only, on all ranks or on one.

Real errors of the kernel, no patched writes.
"""

from __future__ import annotations

import enum
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fault_runs import Outcome, exact, run_forked, scenario, write_run_files
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mtdnn_ds.checkpoint.manifest import damage
from mtdnn_ds.checkpoint.safe_load import load
from mtdnn_ds.config.errors import DataError
from mtdnn_ds.files import PatientFile, size

pytestmark = pytest.mark.slow

# A checkpoint of the tiny encoder takes 16 MB, best weights 4. A line of the log takes less than half a kB:
# 16 do not fit into what is left of a page of 4 kB on a full disk.
LONG: dict[str, Any] = {
    "train__steps": "24",
    "train__save_every": "6",
    "train__eval_every": "12",
    "resume": "auto",
}
ALONE: dict[str, Any] = {"world_size": 1}


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory, official_files: Path, tiny_encoder: Path) -> Path:
    return write_run_files(
        tmp_path_factory.mktemp("disk"), official_files, tiny_encoder, save_every=3, eval_every=6
    )


@pytest.fixture(scope="module")
def outcomes(run_files: Path) -> dict[str, Outcome]:
    """Runs on two ranks of which rank 1 alone cannot write its shard of step 6."""
    limited = [(1, "saving_6", "file_limit 100000")]
    goes_on = {"train__on_save_error": "continue"}
    background = {"train__async_save": "true"}
    runs = {
        "straight": scenario(run_files, "straight"),
        "stops": scenario(run_files, "stops", *limited),
        "stops_resumed": scenario(run_files, "stops", resume="auto"),
        "continues": scenario(run_files, "continues", *limited, (1, "step_8", "file_limit -1"), **goes_on),
        "last_fails": scenario(run_files, "last_fails", (1, "saving_12", "file_limit 100000"), **goes_on),
        "straight_async": scenario(run_files, "straight_async", **background),
        "async_stops": scenario(run_files, "async_stops", *limited, **background),
        "async_continues": scenario(
            run_files, "async_continues", *limited, (1, "step_8", "file_limit -1"), **goes_on, **background
        ),
    }
    return run_forked(runs, run_files)


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir() if path.is_dir())


def failure(run: Path, step: int) -> str:
    shard = "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    return (
        f"step {step}: the checkpoint could not be saved: rank 1: {run}/checkpoints/.partial_step_{step}.",
        f"/{shard}: File too large",
    )


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["stops", "async_stops"])
def test_a_shard_that_one_rank_cannot_write_stops_all_ranks(
    run_files: Path, outcomes: dict[str, Outcome], name: str
) -> None:
    ended, run = outcomes[name], run_files / name
    assert ended.codes == [1, 1], ended.said
    for part in (
        *failure(run, 6),
        "a checkpoint takes ",
        " are free); ",
        f"{run}/checkpoints/step_3 is untouched",
    ):
        assert part in ended.said[0]
    assert "Traceback" not in "".join(ended.said) and ended.said[0].count("could not be saved") == 1
    if name == "async_stops":  # the other one has gone on since, from step 3 too
        assert checkpoints(run) == ["step_3"]
        assert damage(run / "checkpoints" / "step_3") is None


@pytest.mark.distributed
def test_a_run_that_stopped_for_its_disk_goes_on_exactly(
    run_files: Path, outcomes: dict[str, Outcome]
) -> None:
    assert outcomes["stops_resumed"].codes == [0, 0], outcomes["stops_resumed"].said
    assert "resuming after step 3 of 12" in outcomes["stops_resumed"].said[0]
    assert exact(run_files / "stops") == exact(run_files / "straight")


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["continues", "async_continues"])
def test_a_run_may_go_on_and_saves_again_at_the_next_time(
    run_files: Path, outcomes: dict[str, Outcome], name: str
) -> None:
    ended, run = outcomes[name], run_files / name
    assert ended.codes == [0, 0], ended.said
    for part in (
        *failure(run, 6),
        "going on (train.on_save_error=continue), and saving again at the next time",
    ):
        assert part in ended.said[0]
    assert checkpoints(run) == ["step_12", "step_9"]
    assert exact(run) == exact(run_files / "straight")


@pytest.mark.distributed
def test_a_run_whose_last_checkpoint_fails_does_not_end_well(
    run_files: Path, outcomes: dict[str, Outcome]
) -> None:
    ended, run = outcomes["last_fails"], run_files / "last_fails"
    assert ended.codes == [1, 1], ended.said
    assert f"{run}/checkpoints/step_9 is untouched" in ended.said[0]
    assert checkpoints(run) == ["step_6", "step_9"]


@pytest.mark.distributed
def test_an_asynchronous_save_changes_nothing(run_files: Path, outcomes: dict[str, Outcome]) -> None:
    assert outcomes["straight_async"].codes == [0, 0], outcomes["straight_async"].said
    assert exact(run_files / "straight_async") == exact(run_files / "straight")
    for step in ("step_9", "step_12"):
        ours, theirs = (run_files / run / "checkpoints" / step for run in ("straight_async", "straight"))
        assert damage(ours) is None
        for file in sorted(path.name for path in theirs.glob("*.pt")):
            assert_same(load(ours / file), load(theirs / file), file)


def mount(folder: Path, options: str) -> bool:
    """A small disk of its own at `folder`; only root may."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return os.geteuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def small_disks(run_files: Path) -> Iterator[dict[str, Outcome]]:
    """Runs whose folder is a disk of its own, full from step 4 until step 20, from step 4 on, or at a save;
    or read-only.
    """
    disks = {
        run_files / "gap": "size=100m",
        **{run_files / name: "size=40m" for name in ("log", "first", "no_room")},
    }
    disks[run_files / "read_only" / "checkpoints"] = "ro"
    mounted = [disk for disk, options in disks.items() if mount(disk, options)]
    if len(mounted) < len(disks):
        pytest.skip("a disk that can be filled is a tmpfs of its own, and mounting one takes root")

    def fill(name: str, point: str) -> tuple[int, str, str]:
        return 0, point, f"fill {run_files / name}"

    runs = {
        "straight_long": scenario(run_files, "straight_long", **LONG, **ALONE),
        "gap": scenario(
            run_files,
            "gap",
            fill("gap", "step_4"),
            (0, "step_20", f"free {run_files / 'gap'}"),
            train__on_save_error="continue",
            **LONG,
            **ALONE,
        ),
        "log": scenario(run_files, "log", fill("log", "step_4"), **LONG, **ALONE),
        "first": scenario(run_files, "first", fill("first", "saving_3"), resume="auto", **ALONE),
        "no_room": scenario(run_files, "no_room", fill("no_room", "saving_6"), resume="auto", **ALONE),
        "read_only": scenario(run_files, "read_only", resume="auto", **ALONE),
    }
    (run_files / "elsewhere").mkdir()
    (run_files / "log" / "checkpoints").symlink_to(
        run_files / "elsewhere"
    )  # so that the log's disk alone is full
    try:
        yield run_forked(runs, run_files)
    finally:
        for disk in mounted:
            subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.distributed
def test_on_a_full_disk_lines_and_points_wait_and_nothing_is_lost(
    run_files: Path, small_disks: dict[str, Outcome]
) -> None:
    ended, run = small_disks["gap"], run_files / "gap"
    assert ended.codes == [0], ended.said
    assert (
        f"{run}/metrics.jsonl: No space left on device; its lines wait in memory "
        f"(train.on_save_error=continue)" in ended.said[0]
    )
    for step in (6, 12, 18):
        assert f"step {step}: the checkpoint could not be saved: " in ended.said[0]
    assert "step 12: the best weights of cola, " in ended.said[0]
    assert exact(run) == exact(run_files / "straight_long")
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [
        (line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in exact(run)
    ]
    assert checkpoints(run) == ["step_24"]


@pytest.mark.distributed
def test_a_log_that_cannot_be_written_stops_the_run_with_one_message(
    run_files: Path, small_disks: dict[str, Outcome]
) -> None:
    ended, run = small_disks["log"], run_files / "log"
    assert ended.codes == [1], ended.said
    (line,) = [line for line in ended.said[0].splitlines() if line.startswith("error: ")]
    step = max(checkpoints(run), key=lambda name: int(name.removeprefix("step_")))
    assert line == (
        f"error: {step.replace('_', ' ')}: the log could not be written: {run}/metrics.jsonl: No space "
        f"left on device; "
        "the checkpoint of this step is saved"
    )
    assert 4 <= int(step.removeprefix("step_")) < 20


@pytest.mark.distributed
def test_a_disk_that_fills_up_in_the_first_save_says_so_on_one_line(
    run_files: Path, small_disks: dict[str, Outcome]
) -> None:
    ended = small_disks["first"]
    assert ended.codes == [1], ended.said
    (line,) = [line for line in ended.said[0].splitlines() if line.startswith("error: ")]
    assert (
        line.startswith("error: step 3: the checkpoint could not be saved: ")
        and "No space left on device" in line
    )
    assert line.endswith("; there is no earlier one")
    assert checkpoints(run_files / "first") == []


@pytest.mark.distributed
def test_a_disk_without_room_is_noticed_before_anything_is_written(
    run_files: Path, small_disks: dict[str, Outcome]
) -> None:
    ended, run = small_disks["no_room"], run_files / "no_room"
    assert ended.codes == [1], ended.said
    assert (
        "step 6: the checkpoint could not be saved: the disk has no room for it; nothing was written (a "
        "checkpoint takes " in ended.said[0]
    )
    assert f"0 bytes are free); {run}/checkpoints/step_3 is untouched" in ended.said[0]
    assert damage(run / "checkpoints" / "step_3") is None


@pytest.mark.distributed
def test_a_read_only_folder_stops_the_run(run_files: Path, small_disks: dict[str, Outcome]) -> None:
    ended, run = small_disks["read_only"], run_files / "read_only"
    assert ended.codes == [1], ended.said
    assert f"step 3: the checkpoint could not be saved: {run}/checkpoints/.partial_step_3." in ended.said[0]
    assert ": Read-only file system (" in ended.said[0]


@pytest.mark.distributed
def test_small_disks_are_announced_before_the_first_step(
    run_files: Path, small_disks: dict[str, Outcome]
) -> None:
    said = small_disks["no_room"].said[0]
    note = said.index("checkpoints of about ")
    assert "(train.keep_last=2, and one more while it is written); " in said[note:]
    assert "checkpoints of about " not in small_disks["gap"].said[0]


def test_a_patient_file_neither_tears_nor_doubles_a_line(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = PatientFile(tmp_path / "lines")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        for line in (b"one\n", b"two\n", b"three\n", b"four\n"):
            file.write(line)
            file.flush()
        assert file.problem == f"{tmp_path / 'lines'}: File too large"
        assert (tmp_path / "lines").read_bytes() == b"one\ntwo\nth"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file.close()
    assert file.problem is None
    assert (tmp_path / "lines").read_bytes() == b"one\ntwo\nthree\nfour\n"


def test_a_cache_that_cannot_be_written_is_a_data_error(run_files: Path, tmp_path: Path) -> None:
    from mtdnn_ds.config.load import load_recipe
    from mtdnn_ds.data.cache.build import prepare
    from mtdnn_ds.tasks.resolve import resolve_tasks

    recipe = load_recipe(str(run_files / "recipe.yaml"), {"data.cache_dir": str(tmp_path)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(DataError) as caught:
            prepare(
                resolve_tasks(recipe),
                tokenizer_path=recipe.encoder.path,
                cache_dir=str(tmp_path),
                splits=["train"],
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [problem.split(" (")[0] for problem in caught.value.problems] == [
        f"{task}/train: the cache could not be written to {tmp_path}: File too large"
        for task in ("cola", "rte", "stsb")
    ]
    assert all(
        problem.endswith("MB were free); free some space, or give another data.cache_dir")
        for problem in caught.value.problems
    )
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_sizes_have_three_digits() -> None:
    assert [size(number) for number in (0, 999, 4_690_000_000, 12_340)] == [
        "0 bytes",
        "999 bytes",
        "4.69 GB",
        "12.3 kB",
    ]


def assert_same(ours: Any, theirs: Any, where: str) -> None:
    """Equal values, and bit for bit equal tensors, at any depth."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert list(ours) == list(theirs), where
        for name in ours:
            assert_same(ours[name], theirs[name], f"{where}: {name}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    elif isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), where
    elif hasattr(ours, "__dict__") and not isinstance(ours, enum.Enum):
        assert_same(vars(ours), vars(theirs), where)
    else:
        assert ours == theirs, where
