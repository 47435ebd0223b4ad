"""The objective: sums, counts and one division, on numbers that can be checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mtdnn_ds.losses.objective import loss_coefficients, micro_batch_loss, step_loss, task_means
from mtdnn_ds.losses.sequence import column_table, sequence_losses, sum_by_task
from mtdnn_ds.tasks.layout import HeadLayout

LAYOUT = HeadLayout(
    task_names=("nli", "score", "binary"), first_column=(0, 3, 4), num_outputs=(3, 1, 2), is_regression=(False, True, False)
)


def coefficients(counts: list[int], scale: str, explicit: tuple[float, ...] = (1.0, 1.0, 1.0)) -> list[float]:
    return loss_coefficients(np.array(counts), scale, num_classes=LAYOUT.num_outputs, explicit=explicit).tolist()  # type: ignore[arg-type]


def test_every_example_counts_the_same_by_default() -> None:
    assert coefficients([6, 2, 0], "examples") == [0.125, 0.125, 0.0]


def test_task_mean_gives_each_present_task_the_same_part() -> None:
    assert coefficients([6, 2, 0], "task_mean") == pytest.approx([1 / 12, 1 / 4, 0.0])


def test_log_classes_divides_by_the_log_of_the_number_of_classes() -> None:
    assert coefficients([2, 1, 1], "log_classes") == pytest.approx([0.25 / math.log(3), 0.25, 0.25 / math.log(2)])


def test_explicit_factors_multiply_each_example() -> None:
    assert coefficients([2, 1, 1], "explicit", (2.0, 1.0, 0.5)) == [0.5, 0.25, 0.125]


def test_losses_equal_torch_task_by_task() -> None:
    torch.manual_seed(0)
    logits = torch.randn(7, 6, requires_grad=True)
    task_ids = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    labels = torch.tensor([2.0, 3.5, 1.0, 0.0, -1.0, 0.0, 1.0])
    ours = sequence_losses(logits, task_ids, labels, column_table(LAYOUT, "cpu"))
    ours.sum().backward()
    copy = logits.detach().clone().requires_grad_()
    functional = torch.nn.functional
    theirs = torch.stack(
        [
            functional.cross_entropy(copy[0, :3], torch.tensor(2)),
            functional.mse_loss(copy[1, 3], torch.tensor(3.5)),
            functional.cross_entropy(copy[2, 4:], torch.tensor(1)),
            functional.cross_entropy(copy[3, :3], torch.tensor(0)),
            functional.mse_loss(copy[4, 3], torch.tensor(-1.0)),
            functional.cross_entropy(copy[5, 4:], torch.tensor(0)),
            functional.cross_entropy(copy[6, :3], torch.tensor(1)),
        ]
    )
    theirs.sum().backward()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(logits.grad, copy.grad)


def test_sums_and_counts_of_each_task() -> None:
    sums = sum_by_task(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 2]), 3)
    assert sums.total.tolist() == [1.0, 0.0, 6.0]
    assert sums.count.tolist() == [1.0, 0.0, 2.0]


def test_no_rows_give_a_zero_that_is_still_connected() -> None:
    logits = torch.randn(0, 6, requires_grad=True)
    empty = torch.zeros(0, dtype=torch.int64)
    losses = sequence_losses(logits, empty, torch.zeros(0), column_table(LAYOUT, "cpu"))
    loss = micro_batch_loss(sum_by_task(losses, empty, 3), torch.ones(3))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None


def test_shares_of_micro_batches_add_up_to_the_step_loss() -> None:
    losses, task_ids = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), torch.tensor([0, 1, 0, 2, 2])
    factors = loss_coefficients(np.array([2, 1, 2]), "task_mean", num_classes=LAYOUT.num_outputs, explicit=(1, 1, 1))
    shares = [
        micro_batch_loss(sum_by_task(losses[part], task_ids[part], 3), torch.tensor(factors)).item()
        for part in (slice(0, 1), slice(1, 4), slice(4, 5))
    ]
    assert sum(shares) == pytest.approx(((1 + 3) / 2 + 2 + (4 + 5) / 2) / 3)
    totals = sum_by_task(losses, task_ids, 3).total.numpy()
    assert step_loss(totals, factors) == pytest.approx(sum(shares))
    assert task_means(totals, np.array([2, 1, 0]), LAYOUT.task_names) == {"nli": 2.0, "score": 2.0}
