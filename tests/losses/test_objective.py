"""The objective: sums, counts and one division, on numbers that can be checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mtdnn_ds.batch import Targets
from mtdnn_ds.losses.forms import build_losses, unit_terms
from mtdnn_ds.losses.objective import micro_batch_loss, step_loss, task_means, task_scales, term_coefficients
from mtdnn_ds.losses.sums import sum_by_term
from mtdnn_ds.tasks.layout import head_layout
from mtdnn_ds.tasks.spec import TaskSpec


def spec(name: str, kind: str, num_labels: int, **options: object) -> TaskSpec:
    labels = tuple(str(number) for number in range(num_labels))
    return TaskSpec(name=name, kind=kind, labels=labels, metrics=(), splits={}, options=options)


SPECS = (
    spec("nli", "classification", 3),
    spec("score", "regression", 0),
    spec("binary", "classification", 2),
)
LAYOUT = head_layout(SPECS)


def targets(rows: list[tuple[int, float]]) -> Targets:
    """Rows of (term, label), each an example of its own."""
    every = torch.arange(len(rows))
    return Targets(
        rows=every,
        term_ids=torch.tensor([term for term, _ in rows], dtype=torch.int64),
        labels=torch.tensor([label for _, label in rows], dtype=torch.float32),
        groups=every,
        examples=np.arange(len(rows)),
    )


def coefficients(counts: list[int], scale: str, explicit: tuple[float, ...] = (1.0, 1.0, 1.0)) -> list[float]:
    scales = task_scales(
        np.array(counts),
        scale,  # type: ignore[arg-type]
        log_spaces=(math.log(3), 0.0, math.log(2)),
        explicit=explicit,
    )
    return term_coefficients(scales, np.array(counts), LAYOUT.task_of_term).tolist()


def test_every_example_counts_the_same_by_default() -> None:
    assert coefficients([6, 2, 0], "examples") == [0.125, 0.125, 0.0]


def test_task_mean_gives_each_present_task_the_same_part() -> None:
    assert coefficients([6, 2, 0], "task_mean") == pytest.approx([1 / 12, 1 / 4, 0.0])


def test_log_classes_divides_by_the_loss_of_a_uniform_guess_and_never_by_zero() -> None:
    assert coefficients([2, 1, 1], "log_classes") == pytest.approx(
        [0.25 / math.log(3), 0.25, 0.25 / math.log(2)]
    )


def test_explicit_factors_multiply_each_example() -> None:
    assert coefficients([2, 1, 1], "explicit", (2.0, 1.0, 0.5)) == [0.5, 0.25, 0.125]


def test_a_tasks_share_does_not_depend_on_how_many_units_its_examples_have() -> None:
    """Two tasks of two examples each; the second has 10 supervised tokens.

    Its mean over tokens counts as much as the first's.
    """
    scales = task_scales(np.array([2, 2]), "examples", log_spaces=(math.log(3), math.log(5)), explicit=(1, 1))
    assert scales.tolist() == [0.5, 0.5]
    assert term_coefficients(scales, np.array([2, 10]), (0, 1)).tolist() == [0.25, 0.05]


def test_a_task_of_two_terms_adds_up_their_means() -> None:
    """As BertForPreTraining adds the losses of masked tokens and of the next sentence."""
    layout = head_layout([spec("text", "masked_lm", 0, next_sentence=True), SPECS[0]])
    assert [(term.task, term.form, term.suffix) for term in layout.terms] == [
        (0, "masked_token", ""),
        (0, "class", "next_sentence"),
        (1, "class", ""),
    ]
    scales = np.array([0.75, 0.25])
    assert term_coefficients(scales, np.array([30, 3, 1]), layout.task_of_term).tolist() == [
        0.025,
        0.25,
        0.25,
    ]
    assert task_means(np.array([60.0, 1.5, 7.0]), np.array([30, 3, 1]), layout.task_of_term, 2).tolist() == [
        2.5,
        7.0,
    ]


def test_columns_of_a_head_belong_to_one_term_each() -> None:
    assert [(term.first_column, term.num_outputs) for term in LAYOUT.terms] == [(0, 3), (3, 1), (4, 2)]
    mixed = head_layout([spec("ner", "token_classification", 5), SPECS[0], spec("qa", "span", 0), SPECS[2]])
    assert mixed.heads == ("sequence", "token")
    assert [(term.head, term.first_column) for term in mixed.terms] == [
        ("token", 0),
        ("sequence", 0),
        ("token", 5),
        ("sequence", 3),
    ]
    assert (mixed.num_columns("sequence"), mixed.num_columns("token")) == (5, 7)


def test_losses_equal_torch_task_by_task() -> None:
    torch.manual_seed(0)
    classes, scores = torch.randn(5, 6, requires_grad=True), torch.randn(2, 6, requires_grad=True)
    losses = build_losses(LAYOUT, SPECS, "cpu")
    of_batch = losses.of_batch(
        {"class": classes, "score": scores},
        {"class": targets([(0, 2), (0, 0), (0, 1), (2, 1), (2, 0)]), "score": targets([(1, 3.5), (1, -1.0)])},
    )
    sum(part.losses.sum() for part in of_batch.values()).backward()  # type: ignore[union-attr]
    copies = classes.detach().clone().requires_grad_(), scores.detach().clone().requires_grad_()
    functional = torch.nn.functional
    theirs = [
        functional.cross_entropy(copies[0][0, :3], torch.tensor(2)),
        functional.cross_entropy(copies[0][1, :3], torch.tensor(0)),
        functional.cross_entropy(copies[0][2, :3], torch.tensor(1)),
        functional.cross_entropy(copies[0][3, 4:], torch.tensor(1)),
        functional.cross_entropy(copies[0][4, 4:], torch.tensor(0)),
        functional.mse_loss(copies[1][0, 3], torch.tensor(3.5)),
        functional.mse_loss(copies[1][1, 3], torch.tensor(-1.0)),
    ]
    torch.stack(theirs).sum().backward()
    torch.testing.assert_close(
        torch.cat([of_batch["class"].losses, of_batch["score"].losses]), torch.stack(theirs)
    )
    torch.testing.assert_close(classes.grad, copies[0].grad)
    torch.testing.assert_close(scores.grad, copies[1].grad)
    assert losses.sums(of_batch).count.tolist() == [3.0, 2.0, 2.0]


def test_sums_and_counts_of_each_term() -> None:
    sums = sum_by_term(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 2]), 3)
    assert sums.total.tolist() == [1.0, 0.0, 6.0]
    assert sums.count.tolist() == [1.0, 0.0, 2.0]


def test_an_example_of_several_rows_belongs_to_their_term() -> None:
    of_form = Targets(
        rows=torch.arange(6),
        term_ids=torch.tensor([1, 1, 1, 4, 4, 1]),
        labels=torch.zeros(6),
        groups=torch.tensor([0, 0, 0, 1, 1, 2]),
        examples=np.array([0, 1, 2]),
    )
    assert unit_terms(of_form).tolist() == [1, 4, 1]


def test_no_rows_give_a_zero_that_is_still_connected() -> None:
    outputs = {form: torch.randn(0, 6, requires_grad=True) for form in LAYOUT.forms}
    losses = build_losses(LAYOUT, SPECS, "cpu")
    loss = micro_batch_loss(
        losses.sums(losses.of_batch(outputs, {form: targets([]) for form in LAYOUT.forms})), torch.ones(3)
    )
    loss.backward()
    assert loss.item() == 0.0
    assert all(of_form.grad is not None for of_form in outputs.values())


def test_shares_of_micro_batches_add_up_to_the_step_loss() -> None:
    losses, term_ids = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), torch.tensor([0, 1, 0, 2, 2])
    factors = np.array(coefficients([2, 1, 2], "task_mean"))
    shares = [
        micro_batch_loss(sum_by_term(losses[part], term_ids[part], 3), torch.tensor(factors)).item()
        for part in (slice(0, 1), slice(1, 4), slice(4, 5))
    ]
    assert sum(shares) == pytest.approx(((1 + 3) / 2 + 2 + (4 + 5) / 2) / 3)
    totals = sum_by_term(losses, term_ids, 3).total.numpy()
    assert step_loss(totals, factors) == pytest.approx(sum(shares))
    assert task_means(totals, np.array([2, 1, 0]), LAYOUT.task_of_term, 3)[:2].tolist() == [2.0, 2.0]
