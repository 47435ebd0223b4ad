"""Teachers of choices and of tags: stored answers equal Hugging Face's own models, row by row, also where a
teacher reads fewer tokens.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.tiny_encoders import keep_capitals
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertForMultipleChoice, BertForTokenClassification

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.runs.setup import RunData, prepare_run_data, run_model
from mtdnn_ds.tasks.layout import head_layout
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.train.distillation.teacher_outputs import find_teacher_outputs, with_soft_targets

QUESTIONS = [
    ("which colour has the sky", ["blue", "green grass", "a red car"], 0),
    ("what do birds do", ["they swim in rivers", "fly"], 1),
    ("where is the house", ["on the hill over there", "in music", "slow", "never"], 0),
]
SENTENCES = [
    ["Paris", "is", "old"],
    ["the", "river", "near", "London", "runs", "fast", "and", "deep"],
    ["music"],
]
TAGS = [["B-LOC", "O", "O"], ["O", "O", "O", "B-LOC", "O", "O", "O", "O"], ["O"]]
LABELS = ["O", "B-LOC", "I-LOC"]
TEMPERATURE = 3.0
TEACHER_LENGTH = 8  # six words and two special tokens


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Recipe:
    """A student with a teacher that was never trained, which gives it answers all the same."""
    folder = tmp_path_factory.mktemp("forms")
    questions = [{"question": text, "choices": choices, "right": right} for text, choices, right in QUESTIONS]
    (folder / "choice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    sentences = [
        "".join(f"{word} {tag}\n" for word, tag in zip(*pair, strict=True))
        for pair in zip(SENTENCES, TAGS, strict=True)
    ]
    (folder / "ner.conll").write_text("\n".join(sentences))
    tasks: dict[str, Any] = {
        "choice": {
            "kind": "multiple_choice",
            "text_columns": ["question"],
            "choice_columns": ["choices"],
            "label_column": "right",
        },
        "ner": {"kind": "token_classification", "labels": LABELS},
    }
    tasks["choice"]["files"], tasks["ner"]["files"] = (
        {"train": str(folder / "choice.jsonl")},
        {"train": str(folder / "ner.conll")},
    )
    teacher = {
        "encoder": {"path": str(tiny_encoder), "max_length": TEACHER_LENGTH},
        "tasks": tasks,
        "train": {"steps": 1, "seed": 5},
    }
    (folder / "teacher" / "best" / "average").mkdir(parents=True)
    (folder / "teacher" / "recipe.yaml").write_text(yaml.safe_dump(teacher))
    read = load_recipe(str(folder / "teacher" / "recipe.yaml"), {})
    specs = resolve_tasks(read)
    model = run_model(
        read,
        RunData(specs=specs, layout=head_layout(specs), examples={}),
        device=torch.device("cpu"),
        compute_dtype=torch.float32,
    )
    with torch.no_grad():
        for head in model.heads.values():
            head.weight.mul_(20)  # so that answers differ
    save_file(model.state_dict(), folder / "teacher" / "best" / "average" / "model.safetensors")
    student = {
        "encoder": {"path": str(tiny_encoder), "max_length": 32},
        "tasks": tasks,
        "train": {"steps": 1},
        "data": {"cache_dir": str(folder / "cache")},
        "distillation": {"teachers": [str(folder / "teacher")], "temperature": TEMPERATURE},
    }
    (folder / "student.yaml").write_text(yaml.safe_dump(student))
    return load_recipe(str(folder / "student.yaml"), {})


def soft_targets_of(recipe: Recipe) -> dict[str, list[np.ndarray]]:
    """Soft targets of each example of each task, as a micro-batch gets them."""
    data = prepare_run_data(recipe, resolve_tasks(recipe))
    with_answers = with_soft_targets(
        recipe, data, find_teacher_outputs(recipe, data), device=torch.device("cpu")
    )
    result = {}
    for spec, examples in zip(with_answers.specs, with_answers.train_sets, strict=True):
        gathered = [
            examples.gather(np.array([index]), np.zeros(1)).targets[0]
            for index in range(examples.num_examples)
        ]
        result[spec.name] = [targets.extra["soft"] for targets in gathered]
    return result


def with_teachers_weights(model: Any, recipe: Recipe, head: str) -> Any:
    assert recipe.distillation.teachers is not None
    weights = load_file(Path(recipe.distillation.teachers[0]) / "best" / "average" / "model.safetensors")
    state = {
        f"bert.{name.removeprefix('encoder.model.')}": value
        for name, value in weights.items()
        if name.startswith("encoder.model.")
    }
    if model.bert.pooler is not None:
        state |= {
            f"bert.pooler.{name.removeprefix('encoder.pooler.')}": value
            for name, value in weights.items()
            if "encoder.pooler." in name
        }
    state |= {f"classifier.{part}": weights[f"heads.{head}.{part}"] for part in ("weight", "bias")}
    assert model.load_state_dict(state, strict=False).missing_keys == []
    return model.eval()


@torch.no_grad()
def test_soft_choices_equal_hugging_faces_multiple_choice_model(recipe: Recipe) -> None:
    model = with_teachers_weights(
        BertForMultipleChoice.from_pretrained(recipe.encoder.path), recipe, "sequence"
    )
    tokenizer = AutoTokenizer.from_pretrained(recipe.encoder.path)
    ours = soft_targets_of(recipe)["choice"]
    for soft, (question, choices, _) in zip(ours, QUESTIONS, strict=True):
        inputs = tokenizer(
            [question] * len(choices),
            choices,
            padding=True,
            truncation=True,
            max_length=TEACHER_LENGTH,
            return_tensors="pt",
        )
        logits = model(**{name: values[None] for name, values in inputs.items()}).logits[0]
        np.testing.assert_allclose(soft[:, 0], (logits / TEMPERATURE).softmax(0).numpy(), rtol=0, atol=1e-5)


@torch.no_grad()
def test_soft_tags_equal_hugging_faces_token_classifier_and_end_where_the_teacher_stops_reading(
    recipe: Recipe,
) -> None:
    model = with_teachers_weights(
        BertForTokenClassification.from_pretrained(recipe.encoder.path, num_labels=3), recipe, "token"
    )
    tokenizer = AutoTokenizer.from_pretrained(recipe.encoder.path)
    ours = soft_targets_of(recipe)["ner"]
    assert [len(soft) for soft in ours] == [3, 8, 1]
    for soft, words in zip(ours, SENTENCES, strict=True):
        inputs = tokenizer(
            [words], is_split_into_words=True, truncation=True, max_length=TEACHER_LENGTH, return_tensors="pt"
        )
        word_of_token = inputs.word_ids(0)
        first = [word_of_token.index(word) for word in range(len(words)) if word in word_of_token]
        theirs = (model(**inputs).logits[0, first] / TEMPERATURE).softmax(1).numpy()
        np.testing.assert_allclose(soft[: len(first)], theirs, rtol=0, atol=1e-5)
        assert np.isnan(soft[len(first) :]).all()
    assert np.isnan(ours[1]).any(), "the teacher should stop before the end of the long sentence"


def test_a_teacher_of_tags_with_another_tokenizer_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    """Another tokenizer may find no token in other words, and words would be matched wrongly."""
    cased = keep_capitals(shutil.copytree(recipe.encoder.path, tmp_path / "cased"))
    student = recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update={"path": str(cased)})})
    data = prepare_run_data(student, resolve_tasks(student))
    assert recipe.distillation.teachers is not None
    with pytest.raises(ConfigError) as caught:
        find_teacher_outputs(student, data)
    assert str(caught.value) == (
        f"distillation.teachers: {recipe.distillation.teachers[0]}: task 'ner': another tokenizer may "
        f"leave out other words; "
        "take a teacher with this run's tokenizer, or leave the task out of distillation.tasks"
    )
