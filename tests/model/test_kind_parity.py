"""Tagged words, choices and embedded pairs through rows, packing,
model and loss, against transformers' own models: losses and every gradient.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, BertForMultipleChoice, BertForTokenClassification, BertModel

from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.batches.collate import ExampleSets, collate
from mtdnn_ds.data.cache.build import prepare
from mtdnn_ds.data.examples import make_examples
from mtdnn_ds.losses.forms import build_losses, read_out
from mtdnn_ds.model.multitask import MultiTaskNet, build_model
from mtdnn_ds.tasks.layout import head_layout
from mtdnn_ds.tasks.resolve import resolve_tasks

MAX_LENGTH = 16
SENTENCES = [
    (["Eli", "sings", "in", "Bad-Ems"], [1, 0, 0, 1]),
    (["a"], [2]),
    (["naïve", "\u200b", "don't"] * 4, [1, 2, 0] * 4),
]
QUESTIONS = [
    ("Who?", ["he", "she did it", "they"], 0),
    ("Where are they?", ["here", "at home and away " * 4, "x"], 2),
]
PAIRS = [("a red boat", "the sea", 1.0), ("one", "one", 5.0), ("she sang " * 9, "he slept", 2.5)]


class Pipeline:
    """One task with rows written to a file,
    as one packed micro-batch of all its examples, shortest sequences first.
    """

    def __init__(
        self, folder: Path, encoder: Path, settings: Mapping[str, Any], rows: list[dict[str, Any]]
    ) -> None:
        file = folder / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        tasks = {"task": {**settings, "files": {"train": str(file)}}}
        recipe = {
            "encoder": {"path": str(encoder), "max_length": MAX_LENGTH},
            "train": {"steps": 1},
            "tasks": tasks,
        }
        (spec,) = resolve_tasks(Recipe.model_validate(recipe))
        prepared = prepare([spec], tokenizer_path=str(encoder), cache_dir=str(folder / "cache"))
        self.examples = make_examples(spec, prepared["task"]["train"], max_length=MAX_LENGTH)
        self.layout = head_layout([spec])
        (self.form,) = self.layout.forms
        self.model: MultiTaskNet = build_model(
            encoder_path=str(encoder), specs=[spec], layout=self.layout, dropout="none"
        )
        self.losses = build_losses(self.layout, (spec,), "cpu")
        everything, zeros = np.arange(len(rows)), np.zeros(len(rows), dtype=np.int64)
        self.batch = collate(
            zeros,
            everything,
            zeros,
            ExampleSets(
                examples=[self.examples],
                tasks=[0],
                layout=self.layout,
                filler_ids=np.array([101, 102]),
            ),
        )

    def loss(self) -> Tensor:
        """Mean over the supervised units, as the objective of a step with this task alone."""
        sums = self.losses.sums(self.losses.of_batch(self.model(self.batch), self.batch.targets))
        assert sums.count.tolist() == self.batch.unit_counts.tolist()
        return sums.total[0] / sums.count[0]

    def gradients(self) -> dict[str, Tensor | None]:
        """By Hugging Face's names."""
        names = {
            "encoder.model.": "",
            "encoder.pooler.": "pooler.",
            f"heads.{self.layout.heads[0]}.": "classifier.",
        }
        found = {}
        for name, parameter in self.model.named_parameters():
            prefix = next(ours for ours in names if name.startswith(ours))
            found[names[prefix] + name.removeprefix(prefix)] = parameter.grad
        return found


def assert_equal_gradients(ours: Mapping[str, Tensor | None], theirs: nn.Module) -> None:
    expected = {name.removeprefix("bert."): parameter.grad for name, parameter in theirs.named_parameters()}
    for name, gradient in expected.items():
        if gradient is None:
            assert ours.get(name) is None, f"{name} has a gradient"
            continue
        torch.testing.assert_close(
            ours[name],
            gradient,
            atol=1e-5 * max(1.0, gradient.abs().max().item()),
            rtol=1e-5,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    assert {name for name, gradient in ours.items() if gradient is not None} == {
        name for name, each in expected.items() if each is not None
    }


def share_head(theirs: nn.Linear, ours: nn.Module) -> None:
    with torch.no_grad():
        theirs.weight.copy_(ours.weight.normal_(0, 1, generator=torch.Generator().manual_seed(1)))
        theirs.bias.copy_(ours.bias.normal_(0, 1, generator=torch.Generator().manual_seed(2)))


def test_tagged_words_equal_bert_for_token_classification(tmp_path: Path, tiny_encoder: Path) -> None:
    settings = {
        "kind": "token_classification",
        "text_columns": ["words"],
        "label_column": "tags",
        "labels": ["O", "B-x", "I-x"],
    }
    pipeline = Pipeline(
        tmp_path, tiny_encoder, settings, [{"words": words, "tags": tags} for words, tags in SENTENCES]
    )
    theirs = BertForTokenClassification.from_pretrained(
        tiny_encoder, num_labels=3, dtype=torch.float32
    ).eval()
    share_head(theirs.classifier, pipeline.model.heads["token"])
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    inputs = tokenizer(
        [words for words, _ in SENTENCES],
        is_split_into_words=True,
        truncation=True,
        max_length=MAX_LENGTH,
        padding="longest",
        return_tensors="pt",
    )
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, (_, tags) in enumerate(SENTENCES):
        word_ids = inputs.word_ids(row)
        for place, word in enumerate(word_ids):
            if word is not None and word != word_ids[place - 1]:
                labels[row, place] = tags[word]
    expected = theirs(**inputs, labels=labels).loss
    loss = pipeline.loss()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert pipeline.batch.unit_counts.tolist() == [float((labels != -100).sum())]
    loss.backward()
    expected.backward()
    gradients = pipeline.gradients()
    assert all(gradients.pop(name) is None for name in ("pooler.dense.weight", "pooler.dense.bias")), (
        "the pooler is frozen"
    )
    assert_equal_gradients(gradients, theirs)


def test_choices_equal_bert_for_multiple_choice(tmp_path: Path, tiny_encoder: Path) -> None:
    settings = {
        "kind": "multiple_choice",
        "text_columns": ["q"],
        "choice_columns": ["c"],
        "label_column": "y",
    }
    pipeline = Pipeline(tmp_path, tiny_encoder, settings, [{"q": q, "c": c, "y": y} for q, c, y in QUESTIONS])
    theirs = BertForMultipleChoice.from_pretrained(tiny_encoder, dtype=torch.float32).eval()
    share_head(theirs.classifier, pipeline.model.heads["sequence"])
    firsts = [q for q, choices, _ in QUESTIONS for _ in choices]
    seconds = [choice for _, choices, _ in QUESTIONS for choice in choices]
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    inputs = tokenizer(
        firsts, seconds, truncation=True, max_length=MAX_LENGTH, padding="longest", return_tensors="pt"
    )
    expected = theirs(
        **{name: each.view(2, 3, -1) for name, each in inputs.items()}, labels=torch.tensor([0, 2])
    ).loss
    loss = pipeline.loss()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert pipeline.batch.unit_counts.tolist() == [2.0]
    loss.backward()
    expected.backward()
    assert_equal_gradients(pipeline.gradients(), theirs)


@pytest.mark.parametrize("objective", ["cosine", "contrastive"])
def test_pairs_equal_mean_pooled_bert(objective: str, tmp_path: Path, tiny_encoder: Path) -> None:
    scores = [score if objective == "cosine" else float(score > 2) for _, _, score in PAIRS]
    settings = {"kind": "similarity", "text_columns": ["a", "b"], "label_column": "y", "objective": objective}
    settings |= {"score_range": [0, 5]} if objective == "cosine" else {}
    rows = [{"a": a, "b": b, "y": score} for (a, b, _), score in zip(PAIRS, scores, strict=True)]
    pipeline = Pipeline(tmp_path, tiny_encoder, settings, rows)
    theirs = BertModel.from_pretrained(tiny_encoder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)

    def embedded(text: str) -> Tensor:
        return (
            theirs(**tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="pt"))
            .last_hidden_state[0]
            .mean(0)
        )

    losses, cosines = [], []
    for (first, second, _), score in zip(PAIRS, scores, strict=True):
        u, v = embedded(first), embedded(second)
        cosines.append((u @ v / (u.norm() * v.norm())).item())
        if objective == "cosine":
            losses.append((u @ v / (u.norm() * v.norm()) - score / 5) ** 2)
        else:
            distance = (functional.normalize(u, dim=0) - functional.normalize(v, dim=0)).norm()
            losses.append(distance**2 / 2 if score == 1 else functional.relu(1 - distance) ** 2 / 2)
    expected, loss = torch.stack(losses).mean(), pipeline.loss()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert pipeline.batch.unit_counts.tolist() == [3.0] and len(pipeline.batch.targets[objective].rows) == 6
    loss.backward()
    expected.backward()
    assert_equal_gradients(pipeline.gradients(), theirs)
    # What evaluation makes of it: one score for each row, on the scale of the source.
    outputs = read_out(objective, pipeline.model(pipeline.batch)[objective])
    assert outputs[::2, 0].tolist() == pytest.approx(cosines, abs=1e-5)


def test_scores_of_a_similarity_are_decoded_to_the_scale_of_the_source(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    from mtdnn_ds.data.examples.base import TermOutputs

    settings = {"kind": "similarity", "text_columns": ["a", "b"], "label_column": "y", "score_range": [1, 5]}
    pipeline = Pipeline(
        tmp_path, tiny_encoder, settings, [{"a": a, "b": b, "y": score} for a, b, score in PAIRS]
    )
    targets = pipeline.batch.targets["cosine"].labels.tolist()
    assert sorted(targets[::2]) == [0.0, 0.375, 1.0]  # scores 1, 2.5 and 5
    values = np.array([[0.0], [0.0], [1.0], [1.0], [0.5], [0.5]], dtype=np.float32)
    decoded = pipeline.examples.decode(
        [TermOutputs(values=values, labels=np.zeros(6, np.float32), offsets=np.array([0, 2, 4, 6]))]
    )
    assert decoded.predictions.tolist() == [1.0, 5.0, 3.0] and decoded.references.tolist() == [1.0, 5.0, 2.5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {},
            "task/train: 2 of 3 labels do not fit, "
            "the first is 5 in row 2: cosines stand for scores of -1 to 1; "
            "set tasks.task.score_range (0, 1) to your lowest and highest score",
        ),
        (
            {"score_range": [0, 4.5]},
            "task/train: 1 of 3 labels do not fit, "
            "the first is 5 in row 2: cosines stand for scores of -4.5 to 4.5; "
            "set tasks.task.score_range (0, 4.5) to your lowest and highest score",
        ),
        (
            {"objective": "contrastive"},
            "task/train: 2 of 3 labels do not fit, "
            "the first is 5 in row 2: contrastive labels are 1 (similar) and 0 (different); "
            "write them so, or choose objective: cosine",
        ),
    ],
)
def test_scores_that_no_cosine_stands_for_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path, tiny_encoder: Path
) -> None:
    from mtdnn_ds.config.errors import DataError

    base = {"kind": "similarity", "text_columns": ["a", "b"], "label_column": "y", **settings}
    with pytest.raises(DataError) as raised:
        Pipeline(tmp_path, tiny_encoder, base, [{"a": a, "b": b, "y": score} for a, b, score in PAIRS])
    assert str(raised.value) == message
