"""SMART and FreeLB written out for plain Hugging Face BertModel, one example at a time, in float64. Shares no
code with mtdnn_ds; not a test file.

It is told the examples as token ids and the noise that each one's ascent begins with; perturbation,
divergences, proximal term, averaged model and the objective (the mean over the step's examples) are written
out here again.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertModel


@dataclass(frozen=True)
class TokenExample:
    task: str
    input_ids: list[int]
    token_type_ids: list[int]
    label: float
    noise: Tensor  # (L, E)


@dataclass(frozen=True)
class Perturbation:
    """Settings of both; `norm` and `per` as in the recipe."""

    name: str
    steps: int
    step_size: float
    radius: float
    norm: str
    per: str
    factor: float = 0.0
    proximal_factor: float = 0.0
    momentum: float = 0.0


class ReferenceModel(nn.Module):
    """BertModel with a linear head for each task. `heads`: task -> weight (C, D) and bias (C,)."""

    def __init__(
        self, encoder_path: Path, heads: dict[str, tuple[Tensor, Tensor]], regressions: set[str]
    ) -> None:
        super().__init__()
        self.bert = BertModel.from_pretrained(
            encoder_path,
            attn_implementation="eager",
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ).eval()
        self.weights = nn.ParameterDict(
            {task: nn.Parameter(weight.clone()) for task, (weight, _) in heads.items()}
        )
        self.biases = nn.ParameterDict(
            {task: nn.Parameter(bias.clone()) for task, (_, bias) in heads.items()}
        )
        self.regressions = regressions
        self.double()

    def forward(self, example: TokenExample, noise: Tensor | None = None) -> Tensor:
        embeddings = self.bert.embeddings.word_embeddings(torch.tensor([example.input_ids]))
        if noise is not None:
            embeddings = embeddings + noise
        pooled = self.bert(
            inputs_embeds=embeddings, token_type_ids=torch.tensor([example.token_type_ids])
        ).pooler_output[0]
        return self.weights[example.task] @ pooled + self.biases[example.task]

    def loss(self, example: TokenExample, logits: Tensor) -> Tensor:
        if example.task in self.regressions:
            return (logits[0] - example.label) ** 2
        return functional.cross_entropy(logits, torch.tensor(int(example.label)))

    def divergence(self, example: TokenExample, ours: Tensor, theirs: Tensor) -> Tensor:
        if example.task in self.regressions:
            return (ours[0] - theirs[0]) ** 2
        ours, theirs = ours.log_softmax(0), theirs.log_softmax(0)
        return sum(
            functional.kl_div(q, p, log_target=True, reduction="sum")
            for p, q in ((ours, theirs), (theirs, ours))
        )  # type: ignore[return-value]


def ascended(noise: Tensor, gradient: Tensor, how: Perturbation) -> Tensor:
    def length(values: Tensor) -> Tensor:
        order = math.inf if how.norm == "inf" else 2.0
        rows = values if how.per == "token" else values.reshape(1, -1)
        return torch.stack(
            [row.abs().max() if order == math.inf else (row * row).sum().sqrt() for row in rows]
        )[:, None]

    moved = noise + how.step_size * gradient / length(gradient)
    if how.norm == "inf":
        return torch.minimum(torch.maximum(moved, torch.tensor(-how.radius)), torch.tensor(how.radius))
    size = length(moved)
    return torch.where(size > how.radius, moved * how.radius / size, moved)


def example_objective(
    model: ReferenceModel, averaged: ReferenceModel, example: TokenExample, how: Perturbation
) -> tuple[Tensor, Tensor]:
    """(loss, what is added to it) of one example."""
    noise = example.noise.double()
    if how.name == "freelb":
        loss = torch.zeros((), dtype=torch.float64)
        for _ in range(how.steps):
            noise = noise.detach().requires_grad_()
            own = model.loss(example, model(example, noise))
            (gradient,) = torch.autograd.grad(own, noise, retain_graph=True)
            loss = loss + own / how.steps
            noise = ascended(noise.detach(), gradient, how)
        return loss, torch.zeros(())
    clean = model(example)
    for _ in range(how.steps):
        noise = noise.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(
            model.divergence(example, model(example, noise), clean.detach()), noise
        )
        noise = ascended(noise.detach(), gradient, how)
    added = how.factor * model.divergence(example, model(example, noise), clean)
    with torch.no_grad():
        before = averaged(example)
    return model.loss(example, clean), added + how.proximal_factor * model.divergence(example, clean, before)


def regularized_training(
    model: ReferenceModel,
    steps: list[list[TokenExample]],
    how: Perturbation,
    *,
    lr: float,
    weight_decay: float,
    clip: float,
) -> list[tuple[float, float, float]]:
    """Objective, gradient norm before clipping and what was added, of each step of AdamW, rate constant."""
    averaged = copy.deepcopy(model)
    decayed = [each for name, each in model.named_parameters() if not ("LayerNorm" in name or "bias" in name)]
    plain = [each for name, each in model.named_parameters() if "LayerNorm" in name or "bias" in name]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=lr,
        eps=1e-8,
    )
    results = []
    for examples in steps:
        optimizer.zero_grad()
        parts = [example_objective(model, averaged, example, how) for example in examples]
        objective = torch.stack([loss + added for loss, added in parts]).sum() / len(examples)
        objective.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        with torch.no_grad():
            for mean, own in zip(averaged.parameters(), model.parameters(), strict=True):
                mean.copy_(how.momentum * mean + (1 - how.momentum) * own)
        results.append(
            (objective.item(), float(norm), sum(added.item() for _, added in parts) / len(examples))
        )
    return results
