"""A hand-written loop over every kind of task at once: padded Hugging Face BertModel, heads and losses
written out again. Not a test file.

It is told which sequences and targets make up each step (as mtdnn_ds/data makes them) and the first weights.
Everything after that is written here from the definitions: the forward pass, each head, each loss, the
objective, clipping and AdamW.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import BertModel

STEPS_OF_SAN = 5


@dataclass(frozen=True)
class TermOfStep:
    """Supervised rows of one term: positions, labels and the example each belongs to; `segments`: SAN's
    ranges (K, 4).
    """

    form: str
    columns: slice
    san_index: int
    rows: Tensor
    labels: Tensor
    examples: Tensor
    segments: Tensor | None


@dataclass(frozen=True)
class TaskOfStep:
    """One task's examples in one step: token ids and types of each sequence, and the terms' targets."""

    num_examples: int
    sequences: list[tuple[Tensor, Tensor]]
    terms: list[TermOfStep]


def reference_steps(
    encoder: Path,
    steps: Sequence[Sequence[TaskOfStep]],
    heads: Mapping[str, Tensor],
    *,
    lr: float,
    weight_decay: float,
    clip: float,
) -> list[tuple[float, float, list[float]]]:
    """Objective and gradient norm before clipping of each step, and of each task's part of the objective the
    norm of its gradient in the encoder, without the pooler; in float64. The learning rate is constant.
    """
    bert = BertModel.from_pretrained(
        encoder, attn_implementation="eager", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    bert = bert.double().eval()
    own = {name: tensor.double().clone().requires_grad_() for name, tensor in heads.items()}
    decayed, plain = [], []
    for name, parameter in [*bert.named_parameters(), *own.items()]:
        (plain if name.endswith("bias") or "LayerNorm" in name or ".norm." in name else decayed).append(
            parameter
        )
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8)
    results = []
    for tasks in steps:
        optimizer.zero_grad()
        everything = sum(task.num_examples for task in tasks)
        shared = [parameter for name, parameter in bert.named_parameters() if not name.startswith("pooler")]
        loss = torch.zeros((), dtype=torch.float64)
        norms = []
        for task in tasks:
            part = torch.zeros((), dtype=torch.float64)
            hidden = hidden_states(bert, task.sequences)
            for term in task.terms:
                units = unit_losses(term, hidden, bert, own)
                part = part + task.num_examples / everything * torch.stack(units).mean()
            gradient = torch.autograd.grad(part, shared, retain_graph=True)
            norms.append(float(sum((each**2).sum() for each in gradient).sqrt()))
            loss = loss + part
        loss.backward()
        parameters = [
            parameter for parameter in [*bert.parameters(), *own.values()] if parameter.grad is not None
        ]
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        results.append((loss.item(), float(norm), norms))
    return results


def hidden_states(bert: BertModel, sequences: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Hidden states of each sequence, padding cut off."""
    ids = torch.nn.utils.rnn.pad_sequence([ids for ids, _ in sequences], batch_first=True)
    types = torch.nn.utils.rnn.pad_sequence([types for _, types in sequences], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids, _ in sequences], batch_first=True)
    hidden = bert(input_ids=ids, token_type_ids=types, attention_mask=mask).last_hidden_state
    return [states[: len(ids)] for states, (ids, _) in zip(hidden, sequences, strict=True)]


def unit_losses(
    term: TermOfStep, hidden: list[Tensor], bert: BertModel, own: Mapping[str, Tensor]
) -> list[Tensor]:
    """The loss of each supervised unit of a term, one at a time."""
    tokens = torch.cat(hidden)
    every = range(len(term.rows))
    members = [[row for row in every if term.examples[row] == example] for example in term.examples.unique()]
    labels = term.labels.double()

    def sequence_outputs() -> Tensor:
        first = torch.stack([hidden[row][0] for row in term.rows.tolist()])
        pooled = torch.tanh(functional.linear(first, bert.pooler.dense.weight, bert.pooler.dense.bias))
        return functional.linear(
            pooled, own["sequence.weight"][term.columns], own["sequence.bias"][term.columns]
        )

    if term.form == "class":
        outputs = sequence_outputs()
        return [functional.cross_entropy(outputs[row], labels[row].long()) for row in every]
    if term.form == "score":
        outputs = sequence_outputs()
        return [(outputs[row, 0] - labels[row]) ** 2 for row in every]
    if term.form in ("choice", "pairwise"):
        scores = sequence_outputs()[:, 0]
        return [_of_group(term.form, scores[rows], labels[rows]) for rows in members]
    if term.form in ("tag", "span"):
        outputs = functional.linear(
            tokens[term.rows], own["token.weight"][term.columns], own["token.bias"][term.columns]
        )
        if term.form == "tag":
            return [functional.cross_entropy(outputs[row], labels[row].long()) for row in every]
        return [_span(outputs[rows], labels[rows].long()) for rows in members]
    if term.form == "masked_token":
        states = functional.gelu(
            functional.linear(tokens[term.rows], own["masked_lm.dense.weight"], own["masked_lm.dense.bias"])
        )
        states = functional.layer_norm(
            states, states.shape[1:], own["masked_lm.norm.weight"], own["masked_lm.norm.bias"], eps=1e-12
        )
        scores = functional.linear(states, bert.embeddings.word_embeddings.weight, own["masked_lm.bias"])
        return [functional.cross_entropy(scores[row], labels[row].long()) for row in every]
    if term.form == "cosine":
        means = [hidden[row].mean(dim=0) for row in term.rows.tolist()]
        return [
            (functional.cosine_similarity(means[a], means[b], dim=0) - labels[a]) ** 2 for a, b in members
        ]
    assert term.form == "san" and term.segments is not None
    results = []
    for row in every:
        start_a, length_a, start_b, length_b = term.segments[row].tolist()
        states = hidden[int(term.rows[row])]
        premise, hypothesis = states[start_a : start_a + length_a], states[start_b : start_b + length_b]
        results.append(
            _san(premise, hypothesis, int(labels[row]), {name: own[f"san.{name}"] for name in _SAN}, term)
        )
    return results


def _of_group(form: str, scores: Tensor, labels: Tensor) -> Tensor:
    right, wrong = (
        [scores[i] for i in range(len(scores)) if labels[i] == 1],
        [scores[i] for i in range(len(scores)) if labels[i] == 0],
    )
    if form == "choice":
        whole = torch.logsumexp(scores, dim=0)
        return sum((whole - score for score in right), torch.zeros((), dtype=scores.dtype)) / len(right)
    pairs = [torch.relu(1 - good + bad) for good in right for bad in wrong]
    return torch.stack(pairs).mean()


def _span(outputs: Tensor, labels: Tensor) -> Tensor:
    """A label is 1 for the start plus 2 for the end."""
    start, end = int((labels & 1).argmax()), int((labels & 2).argmax())
    return (
        functional.cross_entropy(outputs[:, 0], torch.tensor(start))
        + functional.cross_entropy(outputs[:, 1], torch.tensor(end))
    ) / 2


_SAN = ("summary", "attention", "input_weight", "state_weight", "input_bias", "state_bias", "classifier")


def _san(
    premise: Tensor, hypothesis: Tensor, label: int, own: Mapping[str, Tensor], term: TermOfStep
) -> Tensor:
    """MT-DNN's equations 5 to 9, one pair at a time."""
    at = term.san_index
    cell = torch.nn.GRUCell(premise.shape[1], premise.shape[1], dtype=premise.dtype)
    gru = {
        "weight_ih": own["input_weight"][at],
        "weight_hh": own["state_weight"][at],
        "bias_ih": own["input_bias"][at],
        "bias_hh": own["state_bias"][at],
    }
    state = torch.softmax(hypothesis @ own["summary"][at], dim=0) @ hypothesis
    probabilities = []
    for step in range(STEPS_OF_SAN):
        if step != 1:  # x_1 is x_0
            answer = torch.softmax(premise @ (state @ own["attention"][at]), dim=0) @ premise
        if step > 0:
            state = torch.func.functional_call(cell, gru, (answer[None], state[None]))[0]
        features = torch.cat([state, answer, (state - answer).abs(), state * answer])
        probabilities.append(torch.softmax(own["classifier"][term.columns] @ features, dim=0))
    return -torch.log(torch.stack(probabilities).mean(dim=0)[label])
