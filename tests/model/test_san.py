"""SAN against a plain loop written from the paper's equations;
half precision, dropout, zero rows, segments. Real runs: tests/train/test_head_runs.py.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.cache.build import prepare
from mtdnn_ds.data.examples import make_examples
from mtdnn_ds.losses.forms import build_losses
from mtdnn_ds.model.heads.san import SanBank
from mtdnn_ds.model.multitask import build_model
from mtdnn_ds.tasks.layout import head_layout
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.tasks.spec import TaskSpec

WIDTH, STEPS = 6, 5
# Three terms in the run: 0 is another head's, 1 has three classes, 2 has two.
COLUMNS = {1: range(0, 3), 2: range(3, 5)}
# Sequences of 9, 4, 7, 5 tokens; rows of sequences 2, 0, 3, 1.
# Text a and text b of each row, within its sequence.
LENGTHS = [9, 4, 7, 5]
ROWS = [2, 0, 3, 1]
TERMS = [2, 1, 2, 1]
SEGMENTS = [[1, 2, 4, 2], [1, 3, 5, 3], [1, 1, 3, 1], [1, 1, 2, 1]]
STARTS = [0, 9, 13, 20]


def bank(**changes: Any) -> SanBank:
    settings = dict(
        hidden_size=WIDTH,
        columns=COLUMNS,
        num_terms_of_run=3,
        dropout_M=[0.0] * 3,
        prediction_dropout=0.0,
        initializer_range=0.02,
        seed=0,
    )
    made = SanBank(**{**settings, **changes})  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():  # biases too, and large enough that every gate matters
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    return made


def hidden_states() -> Tensor:
    return torch.randn(sum(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(2))


def call(head: SanBank, hidden: Tensor, rows: tuple[int, ...] = (0, 1, 2, 3)) -> Tensor:
    """The head on some of ROWS."""
    terms = [TERMS[row] for row in rows]
    return head(
        hidden,
        torch.tensor([STARTS[ROWS[row]] for row in rows], dtype=torch.int32),
        torch.tensor([SEGMENTS[row] for row in rows], dtype=torch.int64).view(-1, 4),
        torch.tensor(terms, dtype=torch.int64),
        [terms.count(term) for term in COLUMNS],
        max(LENGTHS),
    )


def memories(hidden: Tensor, row: int) -> tuple[Tensor, Tensor]:
    start_a, length_a, start_b, length_b = SEGMENTS[row]
    sequence = hidden[STARTS[ROWS[row]] :]
    return sequence[start_a : start_a + length_a], sequence[start_b : start_b + length_b]


def step_probabilities(premise: Tensor, hypothesis: Tensor, weights: dict[str, Tensor]) -> list[Tensor]:
    """P_0 .. P_4 of one row by arXiv:1901.11504, section 3.1:
    loops over tokens and steps, sigmoid and tanh written out.
    """

    def softmax(scores: list[Tensor]) -> list[Tensor]:
        exponentials = [torch.exp(score) for score in scores]
        return [each / sum(exponentials) for each in exponentials]

    def sigmoid(values: Tensor) -> Tensor:
        return 1 / (1 + torch.exp(-values))

    def gru(state: Tensor, answer: Tensor) -> Tensor:
        from_input = (weights["input_weight"] @ answer + weights["input_bias"]).view(3, WIDTH)
        from_state = (weights["state_weight"] @ state + weights["state_bias"]).view(3, WIDTH)
        reset, update = sigmoid(from_input[0] + from_state[0]), sigmoid(from_input[1] + from_state[1])
        return (1 - update) * torch.tanh(from_input[2] + reset * from_state[2]) + update * state

    def attended(state: Tensor) -> Tensor:
        beta = softmax([state @ weights["attention"] @ token for token in premise])
        weighted = (share * token for share, token in zip(beta, premise, strict=True))
        return sum(weighted)  # type: ignore[return-value]

    def predicted(state: Tensor, answer: Tensor) -> Tensor:
        scores = weights["classifier"] @ torch.cat([state, answer, abs(state - answer), state * answer])
        return torch.stack(softmax(list(scores)))

    alpha = softmax([weights["summary"] @ token for token in hypothesis])
    weighted = (share * token for share, token in zip(alpha, hypothesis, strict=True))
    state: Tensor = sum(weighted)  # type: ignore[assignment]
    predictions = [predicted(state, attended(state))]
    for _ in range(1, STEPS):
        answer = attended(state)
        state = gru(state, answer)
        predictions.append(predicted(state, answer))
    return predictions


def reference_weights(head: SanBank, term: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A term's own weights as leaves."""
    own = COLUMNS[term]
    values = {
        name: (bank[own.start : own.stop] if name == "classifier" else bank[term - 1])
        for name, bank in head.named_parameters()
    }
    return {name: value.detach().to(dtype).requires_grad_() for name, value in values.items()}


def test_values_and_gradients_equal_the_papers_equations() -> None:
    ours, hidden = bank(), hidden_states().requires_grad_()
    log_p = call(ours, hidden)
    weights = {term: reference_weights(ours, term) for term in COLUMNS}
    theirs = hidden.detach().double().requires_grad_()
    mixed = torch.rand(4, 5, generator=torch.Generator().manual_seed(3))
    total = torch.zeros((), dtype=torch.float64)
    for row, term in enumerate(TERMS):
        own = COLUMNS[term]
        probabilities = step_probabilities(*memories(theirs, row), weights[term])
        expected = torch.log(sum(probabilities) / STEPS)  # type: ignore[arg-type]
        torch.testing.assert_close(log_p[row, own.start : own.stop].double(), expected, atol=1e-5, rtol=1e-5)
        assert log_p[row].count_nonzero() == len(own), "columns of other terms are 0"
        total = total + (expected * mixed[row, own.start : own.stop]).sum()
    (log_p * mixed).sum().backward()
    total.backward()
    assert theirs.grad is not None and hidden.grad is not None
    torch.testing.assert_close(hidden.grad.double(), theirs.grad, atol=1e-5, rtol=1e-5)
    assert not hidden.grad[0].any() and hidden.grad[1].any(), "the first token belongs to no text"
    for name, parameter in ours.named_parameters():
        per_term = [weights[term][name].grad for term in COLUMNS]
        joined = torch.cat if name == "classifier" else torch.stack
        expected = joined(per_term)  # type: ignore[operator]
        torch.testing.assert_close(
            parameter.grad.double(),
            expected,
            atol=1e-5,
            rtol=1e-5,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_every_parameter_has_a_gradient_without_rows_and_with_rows_of_one_term() -> None:
    for rows in ((), (0, 2), (1,)):
        head, hidden = bank(), hidden_states().requires_grad_()
        outputs = call(head, hidden, rows)
        assert outputs.shape == (len(rows), 5)
        outputs.sum().backward()
        assert hidden.grad is not None and bool(hidden.grad.any()) == bool(rows)
        for name, parameter in head.named_parameters():
            assert parameter.grad is not None, name
            for term, gradient in zip(
                COLUMNS, parameter.grad.split([3, 2]) if name == "classifier" else parameter.grad, strict=True
            ):
                assert bool(gradient.any()) == (term in {TERMS[row] for row in rows}), (name, term)


def test_a_later_run_can_take_over_the_parameters_of_a_term() -> None:
    head = bank()
    assert {*head.per_column, *head.per_term} == set(head.state_dict())
    assert all(getattr(head, name).shape[0] == 5 for name in head.per_column)
    assert all(getattr(head, name).shape[0] == 2 for name in head.per_term)


def test_gradients_of_parts_of_a_micro_batch_add_up() -> None:
    whole, parts = bank(), bank()
    call(whole, hidden_states()).sum().backward()
    for rows in ((3, 0), (), (1,), (2,)):
        call(parts, hidden_states(), rows).sum().backward()
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


def test_a_text_that_has_no_tokens_counts_as_zero() -> None:
    head, hidden = bank(), hidden_states().requires_grad_()
    outputs = head(hidden, torch.tensor([0]), torch.tensor([[1, 0, 2, 0]]), torch.tensor([1]), [1, 0], 9)
    outputs.sum().backward()
    assert bool(outputs.isfinite().all()) and hidden.grad is not None and bool(hidden.grad.isfinite().all())


# Half precision


def test_bf16_is_finite_for_logits_up_to_80_with_gradients_within_rounding() -> None:
    """bf16 keeps 8 bits: a number rounded to it is off by at most 2^-9 of itself.

    Two roundings are allowed.
    """
    half = bank()
    with torch.no_grad():
        half.classifier.mul_(80 / largest_logit(half))
    assert largest_logit(half) == pytest.approx(80, rel=1e-4)
    half.to(torch.bfloat16)
    full = bank()
    full.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
    hidden = hidden_states().to(torch.bfloat16)
    ours, theirs = hidden.clone().requires_grad_(), hidden.float().requires_grad_()
    log_p, expected = call(half, ours), call(full, theirs)
    assert log_p.dtype == torch.float32 and bool(log_p.isfinite().all())
    assert log_p.min() < -40, (
        "in half precision a mean of such probabilities would be 0 and its logarithm infinite"
    )
    torch.testing.assert_close(log_p, expected, atol=1e-5, rtol=1e-5)
    least_likely = torch.tensor(
        [
            log_p[row, list(COLUMNS[term])].argmin().item() + COLUMNS[term].start
            for row, term in enumerate(TERMS)
        ]
    )
    for outputs in (log_p, expected):
        (-outputs.gather(1, least_likely[:, None])).sum().backward()
    for name, mine, other in (
        ("hidden", ours, theirs),
        *((name, p, dict(full.named_parameters())[name]) for name, p in half.named_parameters()),
    ):
        assert mine.grad is not None and other.grad is not None and mine.grad.dtype == torch.bfloat16
        assert bool(mine.grad.isfinite().all()) and bool(mine.grad.any()), name
        torch.testing.assert_close(
            mine.grad.float(),
            other.grad,
            rtol=2**-8,
            atol=1e-6 * float(other.grad.abs().max()),
            msg=lambda text, name=name: f"{name}: {text}",
        )


def largest_logit(head: SanBank) -> float:
    """By the reference: the largest logit of any step is,
    up to the softmax's shift, a difference of log probabilities.
    """
    largest = 0.0
    for row, term in enumerate(TERMS):
        for probabilities in step_probabilities(
            *memories(hidden_states().double(), row), reference_weights(head, term)
        ):
            logits = torch.log(probabilities.detach().clamp_min(1e-300))
            largest = max(largest, float(logits.max() - logits.min()))
    return largest


def test_autocast_does_not_reach_into_the_head() -> None:
    head, hidden = bank(), hidden_states()
    expected = call(head, hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(call(head, hidden), expected, atol=1e-6, rtol=1e-6)


# Dropout


def test_prediction_dropout_averages_what_is_left_and_keeps_at_least_one_step() -> None:
    head = bank(prediction_dropout=0.7).train()
    hidden = hidden_states()
    steps = torch.stack(
        [p for p in step_probabilities(*memories(hidden.double(), 1), reference_weights(head, TERMS[1]))]
    ).detach()
    subsets = [kept for size in range(1, STEPS + 1) for kept in itertools.combinations(range(STEPS), size)]
    candidates = torch.stack([steps[list(kept)].mean(0).log() for kept in subsets])
    torch.manual_seed(0)
    draws = 2000
    log_p = call(head, hidden, (1,) * draws)[:, 0:3].detach().double()
    distances = (candidates[None] - log_p[:, None]).abs().amax(2)
    assert distances.amin(1).max() < 1e-5
    counts = np.bincount(
        [len(subsets[nearest]) for nearest in distances.argmin(1).tolist()], minlength=STEPS + 1
    )
    # The number kept is binomial (5, 0.3), with none moved to one:
    # 0.7^5 + 5 * 0.3 * 0.7^4 = 0.528, then 10 * 0.3^2 * 0.7^3 = 0.309.
    assert counts[0] == 0
    assert counts[1] / draws == pytest.approx(0.528, abs=0.04) and counts[2] / draws == pytest.approx(
        0.309, abs=0.04
    )
    head.eval()
    torch.testing.assert_close(
        call(head, hidden, (1,))[0, 0:3].double(), steps.mean(0).log(), atol=1e-5, rtol=1e-5
    )


def test_memory_dropout_is_that_of_the_task_and_equal_for_both_memories() -> None:
    head, hidden = bank(dropout_M=[0.9, 0.5, 0.0]).train(), hidden_states()
    torch.manual_seed(0)
    outputs = call(head, hidden)
    torch.manual_seed(0)
    # Rows are drawn for in the order of their terms: rows 1 and 3 of term 1 come before 0 and 2 of term 2.
    mask = dict(
        zip(
            (1, 3, 0, 2),
            (torch.rand(4, WIDTH) >= torch.tensor([0.5, 0.5, 0.0, 0.0])[:, None]).double(),
            strict=True,
        )
    )
    for row, term in enumerate(TERMS):
        scale = 2.0 if term == 1 else 1.0
        premise, hypothesis = (memory * mask[row] * scale for memory in memories(hidden.double(), row))
        expected = torch.log(
            sum(step_probabilities(premise, hypothesis, reference_weights(head, term))) / STEPS
        )  # type: ignore[arg-type]
        own = COLUMNS[term]
        torch.testing.assert_close(
            outputs[row, own.start : own.stop].double(), expected, atol=1e-5, rtol=1e-5
        )
    assert torch.equal(call(head.eval(), hidden), call(head, hidden))


# In the model


def specs_of(**tasks: dict[str, Any]) -> tuple[TaskSpec, ...]:
    recipe = {"encoder": {"path": "x"}, "train": {"steps": 1}, "tasks": tasks}
    return resolve_tasks(Recipe.model_validate(recipe))


def test_a_built_in_task_takes_the_head_and_others_are_refused() -> None:
    mnli, rte = specs_of(mnli={"head": "san"}, rte={})
    assert (mnli.head, rte.head) == ("san", "linear")
    layout = head_layout((mnli, rte))
    assert layout.heads == ("sequence", "san")
    assert [(term.head, term.form, term.first_column, term.num_outputs) for term in layout.terms] == [
        ("san", "san", 0, 3),
        ("sequence", "class", 0, 2),
    ]
    with pytest.raises(ConfigError) as raised:
        specs_of(cola={"head": "san"}, stsb={"head": "san"})
    assert raised.value.problems == (
        "tasks.cola.head=san: attends from one text to the other, and this task has one text; remove it",
        "tasks.stsb.head=san: is for classification of pairs, this task is a regression; remove it",
    )


def test_the_model_without_dropout_is_the_same_in_training(tiny_encoder: Path) -> None:
    specs = specs_of(mnli={"head": "san", "dropout": 0.3})
    trained, plain = (
        build_model(encoder_path=str(tiny_encoder), specs=specs, layout=head_layout(specs), dropout=dropout)
        for dropout in ("model", "none")
    )  # type: ignore[arg-type]
    head, off = trained.heads["san"], plain.heads["san"]
    assert (head.prediction_dropout, head.dropout_M.tolist()) == (0.1, pytest.approx([0.3]))
    assert (off.prediction_dropout, off.has_dropout) == (0.0, False)
    assert not any(parameter.requires_grad for parameter in plain.encoder.pooler.parameters()), (
        "no head reads the pooler"
    )
    deviation = {
        name: parameter.std().item()
        for name, parameter in head.named_parameters()
        if not name.endswith("bias")
    }
    assert deviation["attention"] == pytest.approx(0.02 / math.sqrt(32), rel=0.1)
    assert deviation["input_weight"] == pytest.approx(0.02, rel=0.1)
    assert not head.input_bias.any() and not head.state_bias.any()


def test_segments_are_the_texts_tokens_after_truncation(tiny_encoder: Path, tmp_path: Path) -> None:
    texts = [("a b c", "d"), ("one " * 20, "two"), ("x", "word " * 30), ("left " * 9, "right " * 11)]
    file = tmp_path / "pairs.csv"
    file.write_text("a,b,y\n" + "".join(f"{a},{b},yes\n" for a, b in texts))
    settings = {
        "kind": "classification",
        "files": {"train": str(file)},
        "text_columns": ["a", "b"],
        "label_column": "y",
    }
    (spec,) = specs_of(pairs={**settings, "labels": ["yes", "no"], "head": "san"})
    split = prepare([spec], tokenizer_path=str(tiny_encoder), cache_dir=str(tmp_path / "cache"))["pairs"][
        "train"
    ]
    gathered = make_examples(spec, split, max_length=16).gather(
        np.array([3, 0, 1, 2]), np.zeros(4, dtype=np.int64)
    )
    segments = gathered.targets[0].extra["segments"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    for row, (start_a, length_a, start_b, length_b) in zip((3, 0, 1, 2), segments.tolist(), strict=True):
        owners = tokenizer(*texts[row], truncation=True, max_length=16).encodings[0].sequence_ids
        assert [index for index, owner in enumerate(owners) if owner == 0] == list(
            range(start_a, start_a + length_a)
        )
        assert [index for index, owner in enumerate(owners) if owner == 1] == list(
            range(start_b, start_b + length_b)
        )


def test_loss_is_the_negative_log_probability_of_the_label() -> None:
    from mtdnn_ds.batch import Targets

    specs = specs_of(rte={}, mnli={"head": "san"}, qqp={"head": "san"})
    losses = build_losses(head_layout(specs), specs, "cpu")
    every = torch.arange(2)
    targets = Targets(
        rows=every,
        term_ids=torch.tensor([1, 2]),
        labels=torch.tensor([2.0, 0.0]),
        groups=every,
        examples=np.arange(2),
    )
    outputs = torch.tensor([[-1.0, -2.0, -3.5, 0, 0], [0, 0, 0, -0.25, -1.5]], dtype=torch.bfloat16)
    assert losses.of_batch({"san": outputs}, {"san": targets})["san"].losses.tolist() == [3.5, 0.25]
