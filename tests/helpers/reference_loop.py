"""A hand-written single-process PyTorch loop on padded Hugging Face BertModel. Shares no code with mtdnn_ds;
not a test file.

It is told which examples make up each step (as raw texts and labels), the initial weights, and the settings;
the objective is written out here again: the mean over the step's examples of cross-entropy or squared error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoTokenizer, BertModel


@dataclass(frozen=True)
class Example:
    task: str
    texts: tuple[str, ...]
    label: float


def reference_training(
    encoder_path: Path,
    steps: list[list[Example]],
    heads: dict[str, tuple[torch.Tensor, torch.Tensor]],
    regressions: set[str],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    clip: float,
    max_length: int,
    total_steps: int,
    warmup_steps: int,
    dtype: torch.dtype = torch.float64,
) -> list[tuple[float, float]]:
    """Loss and gradient norm before clipping of each step. `heads`: task -> weight (C, D) and bias (C,)."""
    tokenizer = AutoTokenizer.from_pretrained(encoder_path)
    bert = BertModel.from_pretrained(
        encoder_path, attn_implementation="eager", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    ).to(dtype)
    bert.eval()
    head_parameters = {
        task: (weight.to(dtype).clone().requires_grad_(), bias.to(dtype).clone().requires_grad_())
        for task, (weight, bias) in heads.items()
    }
    decayed, plain = [], []
    for name, parameter in bert.named_parameters():
        (plain if name.endswith("bias") or "LayerNorm" in name else decayed).append(parameter)
    decayed += [weight for weight, _ in head_parameters.values()]
    plain += [bias for _, bias in head_parameters.values()]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps)
    results = []
    for number, examples in enumerate(steps, start=1):
        rate = lr * (
            number / warmup_steps
            if number <= warmup_steps
            else (total_steps - number + 1) / (total_steps - warmup_steps)
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = torch.zeros((), dtype=dtype)
        for task in {example.task for example in examples}:
            members = [example for example in examples if example.task == task]
            seconds = [example.texts[1] for example in members] if len(members[0].texts) == 2 else None
            inputs = tokenizer(
                [example.texts[0] for example in members],
                seconds,
                padding="longest",
                truncation=True,
                max_length=max_length,
                return_tensors="pt",
            )
            pooled = bert(**inputs).pooler_output
            weight, bias = head_parameters[task]
            logits = pooled @ weight.T + bias
            labels = torch.tensor([example.label for example in members])
            if task in regressions:
                loss = loss + ((logits[:, 0] - labels.to(dtype)) ** 2).sum()
            else:
                loss = loss + functional.cross_entropy(logits, labels.long(), reduction="sum")
        loss = loss / len(examples)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(
            [parameter for group in groups for parameter in group["params"]], clip
        )  # type: ignore[attr-defined]
        optimizer.step()
        results.append((loss.item(), float(norm)))
    return results
