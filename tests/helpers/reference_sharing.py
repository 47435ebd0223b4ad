"""Soft and low-rank sharing as a hand-written single-process loop on padded Hugging Face BertModels. Shares
no code with mtdnn_ds; not a test file.

soft: one BertModel for each group. After each step, theta_g <- m + (theta_g - m) / (1 + lr penalty) with the
models' mean m. low_rank: one BertModel whose linear layers below the pooler have weight W + B_g A_g for
examples of group g; B_g starts at 0. After each step, B_g <- B_g / (1 + lr penalty). The loss is the mean
over a step's examples; gradients are autograd's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.func import functional_call
from torch.nn import functional
from transformers import AutoTokenizer, BertModel

from helpers.reference_loop import Example

Parameters = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Start:
    """`heads`: task -> weight (C, D) and bias (C,).

    `factors`: linear layer -> A of each group (r, D_in). Empty: soft.
    """

    heads: dict[str, tuple[torch.Tensor, torch.Tensor]]
    factors: dict[str, list[torch.Tensor]]


@dataclass(frozen=True)
class Settings:
    groups: dict[str, list[str]]
    penalty: float
    lr: float
    eps: float
    weight_decay: float
    clip: float  # 0: off
    max_length: int


def shared_training(
    encoder: Path, steps: list[list[Example]], start: Start, settings: Settings
) -> list[tuple[float, float, float]]:
    """Loss, penalty, and gradient norm before clipping of each step; AdamW at a constant rate, in float64.

    The penalty is penalty/2 times the sum of squared distances from m, or of squared B, after the step.
    """
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    bert = BertModel.from_pretrained(
        encoder, attn_implementation="eager", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    bert = bert.double().eval()
    group_of = {task: index for index, tasks in enumerate(settings.groups.values()) for task in tasks}

    def copy() -> Parameters:
        return {
            name: parameter.detach().clone().requires_grad_() for name, parameter in bert.named_parameters()
        }

    copies = [copy()] if start.factors else [copy() for _ in settings.groups]
    heads = {
        task: [part.double().clone().requires_grad_() for part in parts]
        for task, parts in start.heads.items()
    }
    a = {
        name: [own.double().clone().requires_grad_() for own in of_groups]
        for name, of_groups in start.factors.items()
    }
    b = {
        name: [
            torch.zeros(len(copies[0][f"{name}.weight"]), len(own), dtype=torch.float64, requires_grad=True)
            for own in of_groups
        ]
        for name, of_groups in start.factors.items()
    }
    named = [(name, parameter) for own in copies for name, parameter in own.items()]
    plain = [parameter for name, parameter in named if name.endswith("bias") or "LayerNorm" in name] + [
        bias for _, bias in heads.values()
    ]
    decayed = [parameter for name, parameter in named if not (name.endswith("bias") or "LayerNorm" in name)]
    decayed += [weight for weight, _ in heads.values()] + [
        own for factor in (a, b) for of_groups in factor.values() for own in of_groups
    ]
    tied = [own for of_groups in b.values() for own in of_groups]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, eps=settings.eps)
    results = []
    for examples in steps:
        optimizer.zero_grad()
        loss = torch.zeros((), dtype=torch.float64)
        for example in examples:
            group = group_of[example.task]
            parameters = copies[0 if start.factors else group]
            merged = {
                f"{name}.weight": parameters[f"{name}.weight"] + b[name][group] @ a[name][group]
                for name in start.factors
            }
            inputs = tokenizer(
                *example.texts, truncation=True, max_length=settings.max_length, return_tensors="pt"
            )
            pooled = functional_call(bert, {**parameters, **merged}, kwargs=dict(inputs)).pooler_output
            weight, bias = heads[example.task]
            outputs = functional.linear(pooled, weight, bias)
            if len(bias) == 1:
                loss = loss + (outputs[0, 0] - example.label) ** 2
            else:
                loss = loss + functional.cross_entropy(outputs, torch.tensor([int(example.label)]))
        loss = loss / len(examples)
        loss.backward()
        gradients = [parameter.grad for parameter in (*decayed, *plain) if parameter.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        for gradient in gradients:
            gradient *= min(1.0, settings.clip / float(norm)) if settings.clip else 1.0
        optimizer.step()
        for parameter, deviation in deviations(copies, tied):
            parameter.data -= deviation - deviation / (1 + settings.lr * settings.penalty)
        penalty = (
            settings.penalty
            / 2
            * sum(float((deviation**2).sum()) for _, deviation in deviations(copies, tied))
        )
        results.append((loss.item(), penalty, norm.item()))
    return results


def deviations(copies: list[Parameters], tied: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each weight under the penalty, and how far it is from where the penalty draws it."""
    if len(copies) == 1:
        return [(factor, factor.detach().clone()) for factor in tied]
    means = {name: torch.stack([own[name] for own in copies]).mean(0) for name in copies[0]}
    return [(own[name], (own[name] - means[name]).detach()) for own in copies for name in own]
