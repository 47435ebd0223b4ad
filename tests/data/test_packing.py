"""Packing: every example once, budgets kept, ranks and micro-batches of equal cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.data.batches.packing import Packing, pack

# folder in the official GLUE layout -> text columns of train.tsv
GLUE_TEXT = {
    "CoLA": (3,),
    "SST-2": (0,),
    "MRPC": (3, 4),
    "STS-B": (7, 8),
    "QQP": (3, 4),
    "MNLI": (8, 9),
    "QNLI": (1, 2),
    "RTE": (1, 2),
    "WNLI": (1, 2),
}


def costs_of(packing: Packing, lengths: np.ndarray, hidden_size: int) -> np.ndarray:
    """(W, M) cost of every micro-batch, from the formula L (1 + L / 6D)."""
    cost = lengths * (1 + lengths / (6 * hidden_size))
    return np.array([[cost[members].sum() for members in rank] for rank in packing.micro_batches])


def check(packing: Packing, lengths: np.ndarray, world_size: int, max_tokens: int) -> None:
    assert len(packing.micro_batches) == world_size
    assert all(len(rank) == packing.num_micro_batches for rank in packing.micro_batches)
    micro_batches = [members for rank in packing.micro_batches for members in rank]
    assert all(members.dtype == np.int64 for members in micro_batches)
    np.testing.assert_array_equal(np.sort(np.concatenate(micro_batches)), np.arange(lengths.size))
    for members in micro_batches:
        assert lengths[members].sum() <= max_tokens
        assert (np.diff(lengths[members]) >= 0).all()
    assert packing.tokens == lengths.sum()
    assert packing.packing_efficiency == pytest.approx(
        lengths.sum() / (world_size * packing.num_micro_batches * max_tokens)
    )


@pytest.fixture(scope="module")
def glue_lengths(real_data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Stand-in token lengths (1.3 a word, 3 special tokens, at most 128)
    and task ids of up to 20,000 real training rows of each GLUE task.
    """
    lengths, tasks = [], []
    for task, (folder, columns) in enumerate(GLUE_TEXT.items()):
        for line in (
            (real_data / "glue" / folder / "train.tsv").read_text(encoding="utf-8").splitlines()[1:20_000]
        ):
            cells = line.split("\t")
            lengths.append(min(128, int(1.3 * sum(len(cells[column].split()) for column in columns)) + 3))
            tasks.append(task)
    return np.array(lengths), np.array(tasks)


@pytest.mark.parametrize("world_size", [2, 8, 64])
@pytest.mark.parametrize("max_tokens", [512, 8192])
def test_glue_steps_are_balanced(
    glue_lengths: tuple[np.ndarray, np.ndarray], world_size: int, max_tokens: int
) -> None:
    rng = np.random.default_rng(0)
    for _ in range(3):
        chosen = rng.choice(glue_lengths[0].size, 32 * world_size, replace=False)
        lengths = glue_lengths[0][chosen]
        packing = pack(
            lengths, glue_lengths[1][chosen], world_size=world_size, max_tokens=max_tokens, hidden_size=1024
        )
        check(packing, lengths, world_size, max_tokens)
        cost = costs_of(packing, lengths, 1024)
        assert packing.rank_imbalance == pytest.approx(cost.sum(1).max() / cost.sum(1).mean())
        assert packing.rank_imbalance <= 1.02
        waited_for = cost.max(axis=0).sum() / (
            cost.sum() / world_size
        )  # ZeRO 2/3: each micro-batch ends with the slowest rank
        assert waited_for <= 1.05
        print(
            f"W={world_size} M={packing.num_micro_batches} imbalance "
            f"{packing.rank_imbalance:.5f} per micro-batch {waited_for:.5f}"
        )


def test_sharding_at_random_is_what_balancing_improves_on(
    glue_lengths: tuple[np.ndarray, np.ndarray],
) -> None:
    chosen = np.random.default_rng(0).choice(glue_lengths[0].size, 2048, replace=False)
    per_rank = glue_lengths[0][chosen].reshape(64, 32).sum(axis=1)
    assert per_rank.max() / per_rank.mean() > 1.1


@pytest.mark.parametrize("one_task", [False, True])
def test_random_steps_keep_every_promise(one_task: bool) -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        world_size, num_examples = int(rng.integers(1, 12)), int(rng.integers(1, 200))
        longest = int(rng.integers(1, 300))
        lengths = rng.integers(1, longest + 1, num_examples)
        tasks = np.sort(rng.integers(0, rng.integers(1, 9), num_examples)).astype(np.int32)
        max_tokens = int(lengths.max() + rng.integers(0, 2000) * rng.integers(0, 2))
        packing = pack(
            lengths,
            tasks,
            world_size=world_size,
            max_tokens=max_tokens,
            hidden_size=64,
            one_task_per_micro_batch=one_task,
        )
        check(packing, lengths, world_size, max_tokens)
        assert packing.num_micro_batches >= np.ceil(lengths.sum() / (world_size * max_tokens))
        if one_task:
            assert all(
                np.unique(tasks[members]).size <= 1 for rank in packing.micro_batches for members in rank
            )


def test_smallest_number_of_micro_batches() -> None:
    tasks = np.zeros(4, dtype=np.int32)
    # 10+6 and 9+7 fill two bins of 16 exactly; 16 tokens more need a third, which a second rank shares
    exact = pack(np.array([6, 10, 7, 9]), tasks, world_size=1, max_tokens=16, hidden_size=8)
    assert [members.tolist() for members in exact.micro_batches[0]] == [
        [0, 1],
        [2, 3],
    ]  # 10+6 costs more: 100+36 > 81+49
    assert (exact.num_micro_batches, exact.packing_efficiency) == (2, 1.0)
    # 45 tokens in bins of 16 are three by tokens, but no two of these share a bin
    assert (
        pack(np.array([15, 10, 10, 10]), tasks, world_size=1, max_tokens=16, hidden_size=8).num_micro_batches
        == 4
    )


def test_a_bin_without_room_is_used_again_for_shorter_sequences() -> None:
    # 20 costs 20*26 = 520, three times 9 cost 405:
    # the 8 finds the cheaper bin (27 tokens) full and goes to the other; the 3 fills the first
    packing = pack(
        np.array([20, 9, 9, 9, 8, 3]), np.zeros(6, dtype=np.int32), world_size=1, max_tokens=30, hidden_size=1
    )
    assert [members.tolist() for members in packing.micro_batches[0]] == [[4, 0], [5, 1, 2, 3]]


def test_long_sequences_that_cannot_share_need_no_search() -> None:
    """A lower bound by tokens alone would try 10,000 numbers of micro-batches here."""
    packing = pack(
        np.full(20_000, 65), np.zeros(20_000, dtype=np.int32), world_size=1, max_tokens=128, hidden_size=64
    )
    assert packing.num_micro_batches == 20_000


def test_fewer_examples_than_ranks_leave_empty_micro_batches() -> None:
    packing = pack(np.array([5, 9, 7]), np.array([0, 1, 1]), world_size=8, max_tokens=16, hidden_size=32)
    held = [[members.tolist() for members in rank] for rank in packing.micro_batches]
    assert held == [[[1]], [[2]], [[0]], [[]], [[]], [[]], [[]], [[]]]
    assert packing.micro_batches[7][0].dtype == np.int64


def test_one_task_per_micro_batch_gives_long_tasks_more_micro_batches() -> None:
    lengths, tasks = np.array([10] * 12 + [10] * 4), np.array([0] * 12 + [1] * 4)
    packing = pack(
        lengths, tasks, world_size=4, max_tokens=100, hidden_size=32, one_task_per_micro_batch=True
    )
    assert packing.num_micro_batches == 1
    assert sorted((int(tasks[rank[0][0]]), rank[0].size) for rank in packing.micro_batches) == [
        (0, 4),
        (0, 4),
        (0, 4),
        (1, 4),
    ]
    assert packing.rank_imbalance == 1.0


def test_packing_is_deterministic_and_ties_follow_the_steps_order() -> None:
    lengths, tasks = np.full(12, 8), np.zeros(12, dtype=np.int32)
    first, second = (pack(lengths, tasks, world_size=3, max_tokens=64, hidden_size=32) for _ in range(2))
    for ours, theirs in zip(first.micro_batches, second.micro_batches, strict=True):
        assert [members.tolist() for members in ours] == [members.tolist() for members in theirs]
    assert [rank[0].tolist() for rank in first.micro_batches] == [[2, 5, 8, 11], [1, 4, 7, 10], [0, 3, 6, 9]]


def test_a_sequence_longer_than_a_micro_batch_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        pack(np.array([8, 80, 70]), np.zeros(3), world_size=1, max_tokens=64, hidden_size=32)
    assert str(error.value) == (
        "batch.max_tokens_per_micro_batch=64: 2 of 3 examples of a step are longer, "
        "the longest has 80 tokens; "
        "raise it to at least encoder.max_length, or lower encoder.max_length."
    )
