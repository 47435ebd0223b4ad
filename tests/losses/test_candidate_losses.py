"""Losses of candidates and of embedded pairs against values by hand and plain loops,
and that every row stays in the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mtdnn_ds.batch.packed import Targets
from mtdnn_ds.losses.candidates import choice_losses, pairwise_losses
from mtdnn_ds.losses.forms import read_out
from mtdnn_ds.losses.pairs import contrastive_losses, cosine_losses
from mtdnn_ds.losses.sums import TermTable

# Term 0 has column 1, term 1 column 0, as if another task stood between.
TABLE = TermTable(columns=torch.tensor([[1], [0]]), is_output=torch.ones(2, 1, dtype=torch.bool))


def targets_of(groups: list[int], labels: list[float], terms: list[int] | None = None) -> Targets:
    return Targets(
        rows=torch.arange(len(groups)),
        term_ids=torch.tensor(terms or [0] * len(groups), dtype=torch.int64),
        labels=torch.tensor(labels, dtype=torch.float32),
        groups=torch.tensor(groups, dtype=torch.int64),
        examples=np.arange(len(set(groups))),
    )


def scores_of(*values: float) -> Tensor:
    """Scores in column 1; column 0 holds what no row of term 0 may read."""
    return torch.stack([torch.full((len(values),), 9.0), torch.tensor(values)], dim=1)


def test_choice_by_hand() -> None:
    scores = scores_of(0.0, math.log(3), math.log(2), math.log(5), 0.0)
    # softmax: (1/4, 3/4) and (2/8, 5/8, 1/8); right are the second and the first
    losses = choice_losses(scores, targets_of([0, 0, 1, 1, 1], [0, 1, 1, 0, 0]), TABLE)
    torch.testing.assert_close(losses, torch.tensor([-math.log(3 / 4), -math.log(2 / 8)]))


def test_several_right_candidates_have_the_mean_of_their_losses() -> None:
    scores = scores_of(math.log(2), math.log(5), 0.0)
    losses = choice_losses(scores, targets_of([0, 0, 0], [1, 0, 1]), TABLE)
    torch.testing.assert_close(losses, torch.tensor([-(math.log(2 / 8) + math.log(1 / 8)) / 2]))


def test_pairwise_by_hand() -> None:
    scores = scores_of(2.0, 0.5, 2.5, 1.0, 4.0)
    # group 0: right 2.0; 1 - 2 + .5 < 0 -> 0, 1 - 2 + 2.5 = 1.5: mean .75. group 1: right 1.0: 1 - 1 + 4 = 4
    losses = pairwise_losses(scores, targets_of([0, 0, 0, 1, 1], [1, 0, 0, 1, 0]), TABLE)
    torch.testing.assert_close(losses, torch.tensor([0.75, 4.0]))


def loop(kind: str, scores: Tensor, targets: Targets) -> Tensor:
    """The definitions, example by example."""
    losses = []
    for group in range(len(targets.examples)):
        members = [row for row in range(targets.num_rows) if targets.groups[row] == group]
        own = torch.stack([scores[row, 1 - int(targets.term_ids[row])] for row in members])
        right = [place for place, row in enumerate(members) if targets.labels[row] == 1]
        if kind == "choice":
            losses.append(-torch.stack([own.softmax(0)[place].log() for place in right]).mean())
        else:
            others = [place for place in range(len(members)) if place not in right]
            losses.append(
                torch.stack([functional.relu(1 - own[r] + own[i]) for r in right for i in others]).mean()
            )
    return torch.stack(losses)


@pytest.mark.parametrize("kind", ["choice", "pairwise"])
def test_random_groups_equal_a_loop_over_examples(kind: str) -> None:
    generator = np.random.default_rng(3)
    sizes = generator.integers(2, 7, size=20)
    groups = np.repeat(np.arange(20), sizes).tolist()
    labels = np.concatenate(
        [generator.permutation([1] * (1 + size // 4) + [0] * (size - 1 - size // 4)) for size in sizes]
    ).tolist()
    targets = targets_of(groups, labels, [int(group >= 12) for group in groups])
    scores = torch.randn(len(groups), 2, generator=torch.Generator().manual_seed(0)) * 3
    ours, theirs = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    our_losses = {"choice": choice_losses, "pairwise": pairwise_losses}[kind](ours, targets, TABLE)
    their_losses = loop(kind, theirs, targets)
    for losses in (our_losses, their_losses):
        (losses * torch.arange(1, 21)).sum().backward()
    torch.testing.assert_close(our_losses, their_losses, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


def test_large_scores_of_half_precision_stay_finite() -> None:
    scores = scores_of(30000.0, -30000.0, 29999.0, 0.0).to(torch.bfloat16).requires_grad_()
    losses = choice_losses(scores, targets_of([0, 0, 1, 1], [0, 1, 1, 0]), TABLE)
    losses.sum().backward()
    assert (
        losses.dtype == torch.float32
        and bool(torch.isfinite(losses).all())
        and bool(torch.isfinite(scores.grad).all())
    )
    assert losses.tolist() == pytest.approx([60000, 0], rel=1e-2)


def test_cosine_by_hand() -> None:
    embeddings = torch.tensor([[3.0, 0], [5, 0], [1, 0], [0, 2], [1, 1], [-2, -2]])
    losses = cosine_losses(embeddings, targets_of([0, 0, 1, 1, 2, 2], [0.8, 0.8, 0.5, 0.5, -1, -1]), TABLE)
    torch.testing.assert_close(losses, torch.tensor([0.04, 0.25, 0.0]))
    cosines = torch.tensor([[1.0], [1], [0], [0], [-1], [-1]])
    torch.testing.assert_close(read_out("cosine", embeddings), cosines)
    torch.testing.assert_close(read_out("contrastive", embeddings), cosines)


def test_contrastive_by_hand() -> None:
    angle = 2 * math.asin(0.25)  # unit vectors at this angle are 0.5 apart
    near = [math.cos(angle), math.sin(angle)]
    embeddings = torch.tensor([[2.0, 0], near, [1, 0], near, [1, 0], [0, 1]])
    losses = contrastive_losses(embeddings, targets_of([0, 0, 1, 1, 2, 2], [1, 1, 0, 0, 0, 0]), TABLE)
    # similar: d^2 / 2; different: (1 - d)^2 / 2, and nothing for d = sqrt(2) above the margin
    torch.testing.assert_close(losses, torch.tensor([0.125, 0.125, 0.0]))


def test_equal_texts_have_a_finite_gradient() -> None:
    embeddings = torch.ones(4, 3).requires_grad_()
    losses = contrastive_losses(embeddings, targets_of([0, 0, 1, 1], [1, 1, 0, 0]), TABLE)
    losses.sum().backward()
    torch.testing.assert_close(losses.detach(), torch.tensor([0.0, 0.5]))
    assert bool(torch.isfinite(embeddings.grad).all())


@pytest.mark.parametrize("function", [choice_losses, pairwise_losses, cosine_losses, contrastive_losses])
def test_no_rows_give_no_losses_and_keep_the_graph(function: Callable[..., Tensor]) -> None:
    outputs = torch.zeros(0, 2, requires_grad=True)
    losses = function(outputs, targets_of([], []), TABLE)
    assert losses.shape == (0,)
    losses.sum().backward()
    assert outputs.grad is not None and outputs.grad.shape == (0, 2)
