"""A rank that is lost, stopped or hangs ends the whole run in time, with a message that names it.

Nothing is left behind. What "in time" is depends on how long the same machine takes for the undisturbed run.
"""

from __future__ import annotations

import math
import os
import re
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.fault_runs import Outcome, exact, run_forked, scenario, write_run_files

from mtdnn_ds.faults import heartbeat
from mtdnn_ds.faults.heartbeat import Place
from mtdnn_ds.faults.shared_memory import SHARED_MEMORY, remove_own_segments
from mtdnn_ds.faults.watchdog.diagnosis import Process, RankStatus, judge, summarize

pytestmark = pytest.mark.slow

HOST = socket.gethostname()

KILLED = (
    rf"error: rank %d on {HOST} is lost: its process ended without a word at \d\d:\d\d:\d\d "
    rf"\(killed, out of memory, or its node failed\)"
)
SILENT = (
    rf"error: rank %d on {HOST} is lost: no sign of life since \d\d:\d\d:\d\d, for \d+ s "
    rf"\(train.stall_timeout\); it is stopped, frozen or cut off"
)
HANGS = (
    rf"error: rank %d on {HOST} hangs: no progress since \d\d:\d\d:\d\d, for \d+ s "
    rf"\(train.stall_timeout\); last at: {{}} \(forked_ranks.py:\d+ in act\)"
)

# name: (act, exit codes, who speaks, what it says, whether train.stall_timeout passes before)
LOSSES = {
    "kill_1": ((1, "inside_step_5", "SIGKILL"), [75, -9], 0, KILLED % 1, False),
    "kill_0": ((0, "inside_step_5", "SIGKILL"), [-9, 75], 1, KILLED % 0, False),
    "kill_in_tokenizing": ((0, "tokenizing", "SIGKILL"), [-9, 75], 1, KILLED % 0, False),
    "stop_1": ((1, "inside_step_5", "SIGSTOP"), [75, -9], 0, SILENT % 1, True),
    "stop_0": ((0, "inside_step_5", "SIGSTOP"), [-9, 75], 1, SILENT % 0, True),
    "hang_1": (
        (1, "inside_step_5", "hang"),
        [75, 75],
        0,
        HANGS.format(r"step 5, micro-batch \d of \d") % 1,
        True,
    ),
    "hang_0": (
        (0, "inside_step_5", "hang"),
        [75, 75],
        1,
        HANGS.format(r"step 5, micro-batch \d of \d") % 0,
        True,
    ),
    "hang_in_evaluation": ((1, "evaluating_6", "hang"), [75, 75], 0, HANGS.format("step 6, done") % 1, True),
    "hang_in_save": ((0, "saving_6", "hang"), [75, 75], 1, HANGS.format(".*") % 0, True),
    "raise_1": (
        (1, "inside_step_5", "raise"),
        [75, 1],
        0,
        rf"error: rank 1 on {HOST} failed: RuntimeError: a fault of this rank's own \(its own output has "
        rf"the traceback\)",
        False,
    ),
    "raise_0": (
        (0, "inside_step_5", "raise"),
        [1, 75],
        1,
        rf"error: rank 0 on {HOST} failed: RuntimeError: a fault of this rank's own",
        False,
    ),
}


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory, official_files: Path, tiny_encoder: Path) -> Path:
    return write_run_files(tmp_path_factory.mktemp("watchdog"), official_files, tiny_encoder)


@pytest.fixture(scope="module")
def straight(run_files: Path) -> Outcome:
    return run_forked({"straight": scenario(run_files, "straight")}, run_files)["straight"]


@pytest.fixture(scope="module")
def stall_seconds(straight: Outcome) -> int:
    """train.stall_timeout: as long as a whole run takes, so that no slow rank is called lost."""
    return max(4, math.ceil(straight.seconds))


@pytest.fixture(scope="module")
def outcomes(run_files: Path, stall_seconds: int) -> dict[str, Outcome]:
    def watched(name: str, *acts: tuple[int, str, str], **changes: Any) -> dict[str, Any]:
        return scenario(run_files, name, *acts, **{"train__stall_timeout": str(stall_seconds), **changes})

    lost_two = [(0, "inside_step_2", "SIGKILL"), (2, "inside_step_2", "SIGKILL")]
    scenarios = {name: watched(name, act) for name, (act, *_) in LOSSES.items()} | {
        "three_ranks": watched("three_ranks", *lost_two, world_size=3),
        "paused": {**watched("paused", (0, "step_5", "pause")), "pause_seconds": 2 * stall_seconds},
        "alone": watched("alone", (0, "inside_step_5", "hang"), world_size=1),
        "off": watched("off", (1, "inside_step_5", "raise"), train__stall_timeout="0"),
    }
    own, foreign = segments(scenarios["kill_1"]["port"])
    for path in (*own, *foreign):
        path.write_bytes(b"x")

    results = run_forked(scenarios, run_files, at_once=3)

    left = [path for path in (*own, *foreign) if path.exists()]
    for path in left:
        path.unlink()
    assert left == foreign
    return results


def segments(port: int) -> tuple[list[Path], list[Path]]:
    """Segments of both ranks of the run that meets at `port`, and of others: another user's, another port's,
    another address's.
    """
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_{port}"
    own = [SHARED_MEMORY / f"{name}_{rank}" for rank in (0, 1)]
    others = (
        f"deepspeed_allreduce_buffer_{os.getuid() + 1}_127.0.0.1_{port}_0",
        f"{name}0_0",
        name.replace("127.0.0.1", "127.0.0.2") + "_0",
    )
    return own, [SHARED_MEMORY / other for other in others]


@pytest.mark.distributed
@pytest.mark.parametrize("name", LOSSES)
def test_a_lost_rank_ends_the_run_in_time_and_is_named(
    outcomes: dict[str, Outcome], straight: Outcome, stall_seconds: int, name: str
) -> None:
    (rank, _, action), codes, speaker, message, stalls = LOSSES[name]
    outcome = outcomes[name]
    assert outcome.codes == codes, outcome.said
    assert re.search(message, outcome.said[speaker]), outcome.said[speaker]
    assert (
        "error: all ranks end with exit code 75; the same command with --resume auto goes on from the "
        "last checkpoint" in outcome.said[speaker]
    )
    assert ("Traceback" in outcome.said[rank]) == (action == "raise")
    assert "Traceback" not in outcome.said[1 - rank]

    in_time = max(30, 2 * straight.seconds) + stalls * stall_seconds
    assert outcome.seconds_after_act is not None and outcome.seconds_after_act < in_time


@pytest.mark.distributed
def test_the_others_are_described(outcomes: dict[str, Outcome]) -> None:
    said = outcomes["hang_1"].said[0]
    assert re.search(
        r"error: the others: rank 0: step 5, (micro-batch \d of \d|update) \(waiting in \w+\)", said
    ), said
    assert re.search(r"error: when it was last heard, ranks? 0", outcomes["stop_0"].said[1])


@pytest.mark.distributed
def test_without_rank_0_one_of_the_others_speaks(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["three_ranks"]
    assert outcome.codes == [-9, 75, -9], outcome.said
    assert re.search(KILLED % 0, outcome.said[1])


@pytest.mark.distributed
def test_a_run_that_was_stopped_as_a_whole_goes_on(
    run_files: Path, straight: Outcome, outcomes: dict[str, Outcome]
) -> None:
    assert straight.codes == [0, 0], straight.said
    assert outcomes["paused"].codes == [0, 0], outcomes["paused"].said
    assert exact(run_files / "paused") == exact(run_files / "straight")


@pytest.mark.distributed
def test_a_rank_without_others_is_watched_too(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["alone"].codes == [75], outcomes["alone"].said
    assert re.search(HANGS.format(".*") % 0, outcomes["alone"].said[0])


@pytest.mark.distributed
def test_without_a_watch_a_broken_collective_is_what_is_seen(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["off"].codes == [1, 1], outcomes["off"].said
    assert "Traceback" in outcomes["off"].said[0] and "rank 1 on" not in outcomes["off"].said[0]


# The judgment


def seen(
    rank: int,
    *,
    count: int = 5,
    heard: float = 100.0,
    moved: float = 100.0,
    waits: bool = True,
    loop: bool = True,
) -> RankStatus:
    place = Place(
        count=count,
        text=f"step {count}",
        line="waiting in all_reduce" if waits else "a.py:1 in f",
        waits=waits,
        in_loop=loop,
    )
    return RankStatus(
        rank=rank,
        process=Process(host=f"n{rank // 2}", pid=1, started="1"),
        heard=heard,
        moved=moved,
        place=place,
    )


def lost(*ranks: RankStatus, now: float = 105.0, timeout: float = 10.0) -> tuple[int, ...] | None:
    verdict = judge(ranks, now, timeout)
    return None if verdict is None else verdict.lost


def test_nothing_is_wrong_before_its_time() -> None:
    assert lost(seen(0), seen(1)) is None
    assert lost(seen(0, heard=94.9), seen(1)) == (0,)
    assert lost(seen(0, heard=94.9), seen(1), timeout=0) is None


def test_a_node_s_ranks_are_named_together() -> None:
    ranks = [seen(rank) for rank in range(4)]
    ranks[2].end, ranks[2].ended = "closed", 104.8
    assert lost(*ranks) is None  # the others of its node may follow
    ranks[3].end, ranks[3].ended = "closed", 105.1
    assert lost(*ranks, now=105.3) == (2, 3)


def test_of_ranks_that_stand_still_the_one_that_others_wait_for_is_named() -> None:
    still = dict(moved=90.0)
    assert lost(seen(0, **still), seen(1, waits=False, **still), seen(2, **still)) == (1,)
    assert lost(seen(0, count=9, **still), seen(1, count=8, **still), seen(2, count=9, **still)) == (1,)
    assert lost(seen(0, **still), seen(1)) is None  # one goes on: it may be the other's turn next
    assert (
        lost(seen(0, loop=False, **still), seen(1, loop=False, **still)) is None
    )  # tokenizing may take hours
    assert lost(seen(0, **still), seen(1, heard=99.9, **still)) == (1,)  # heard less than the others
    verdict = judge([seen(0, **still), seen(1, **still)], 105.0, 10.0)
    assert (
        verdict is not None
        and verdict.lost == ()
        and verdict.text.startswith("no rank has made progress since ")
    )


def test_a_failure_of_all_ranks_is_nobody_s_loss() -> None:
    ranks = [seen(0), seen(1)]
    for rank in ranks:
        rank.end, rank.ended, rank.failure = "failed", 90.0, "CheckpointError: no"
    assert lost(*ranks) is None
    assert lost(ranks[0], seen(1)) == (0,)
    assert lost(replace(ranks[0], ended=102.0), seen(1)) is None  # the other may end by itself


def test_ranks_at_one_place_are_told_together() -> None:
    ranks = [seen(rank, count=7 if rank == 1 else 8) for rank in range(6)]
    assert (
        summarize(ranks)
        == "ranks 0, 2-5: step 8 (waiting in all_reduce); rank 1: step 7 (waiting in all_reduce)"
    )


def test_only_own_segments_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29511")
    own, foreign = segments(29511)
    for path in (*own, *foreign):
        (tmp_path / path.name).write_bytes(b"x")
    assert sorted(remove_own_segments(tmp_path)) == sorted(path.name for path in own)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in foreign)


def test_listeners_are_called_before_a_heartbeat_counts() -> None:
    came: list[tuple[str, int]] = []
    detach = heartbeat.on_heartbeat(lambda text: came.append((text, heartbeat.place().count)))
    first = heartbeat.place()
    heartbeat.heartbeat("step 1, beginning")
    heartbeat.announce("step 1, of one rank alone")
    assert came == [("step 1, beginning", first.count), ("step 1, of one rank alone", first.count + 1)]
    assert (heartbeat.place().text, heartbeat.place().count) == ("step 1, beginning", first.count + 1)
    detach()
    heartbeat.heartbeat("step 1, done")
    assert len(came) == 2


def test_a_heartbeat_costs_nothing() -> None:
    begin = time.thread_time()
    for number in range(10_000):
        heartbeat.heartbeat(f"step {number}, micro-batch 1 of 1")
    assert (time.thread_time() - begin) / 10_000 < 20e-6
