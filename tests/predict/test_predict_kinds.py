"""Prediction of what the run of tests/helpers/predict_runs.py lacks:
conversations, kinds of a user's own, a tokenizer that glues blanks to words.

The models are not trained: their weights are drawn at random.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.predict_runs import drawn_apart
from tokenizers import ByteLevelBPETokenizer
from transformers import RobertaConfig, RobertaModel, RobertaTokenizerFast

from mtdnn_ds import CustomKind, MultiTaskModel
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.cache.build import prepare
from mtdnn_ds.data.examples import make_examples
from mtdnn_ds.runs.evaluate import predict as predict_split
from mtdnn_ds.runs.setup import RunData
from mtdnn_ds.tasks.spec import Source, TaskSpec

STORY = (
    "The old harbour of Varna was closed in 1905. " * 6 + "Ann saw a red ship there, and went on to Burgas."
)
TALK = [("What was closed?", "the harbour"), ("When?", "1905"), ("Did Ann see a ship?", "yes")]
OPTIONS = {"stride": None, "max_answer_tokens": 5, "history_turns": 2}


def untrained(encoder: Path, *specs: TaskSpec) -> MultiTaskModel:
    recipe = Recipe.model_validate(
        {"encoder": {"path": str(encoder), "max_length": 48}, "tasks": {"cola": {}}, "train": {"steps": 1}}
    )
    return drawn_apart(recipe, specs, by=0.2)


def task(name: str, kind: str, **fields: Any) -> TaskSpec:
    return TaskSpec(**{"name": name, "kind": kind, "labels": (), "metrics": (), "splits": {}, **fields})


def test_conversations_are_answered_as_evaluation_answers_them(tiny_encoder: Path, tmp_path: Path) -> None:
    asked = [{"input_text": question, "turn_id": number} for number, (question, _) in enumerate(TALK, 1)]
    given = [
        {"input_text": answer, "turn_id": number, "span_start": 4, "span_end": 15, "span_text": STORY[4:15]}
        for number, (_, answer) in enumerate(TALK, 1)
    ]
    data = {"version": "1.0", "data": [{"id": "a", "story": STORY, "questions": asked, "answers": given}]}
    (tmp_path / "dev.json").write_text(json.dumps(data))
    source = Source(
        format="conversations",
        path=str(tmp_path / "dev.json"),
        text_columns=("question", "story"),
        label_column="answers",
    )
    spec = task("talk", "conversational_span", splits={"dev": source}, options=OPTIONS)
    model = untrained(tiny_encoder, spec)
    prepared = prepare(
        [spec],
        tokenizer_path=str(tiny_encoder),
        cache_dir=str(tmp_path / "cache"),
        on_bad_row="refuse",
        splits={"dev"},
        build=True,
    )
    examples = make_examples(spec, prepared["talk"]["dev"], max_length=48)
    run_data = RunData(specs=(spec,), layout=model.layout, examples={"talk": {"dev": examples}})
    (outputs,) = predict_split(model.net, [(0, "dev")], run_data, model.settings, model.device)
    rows = [
        {"question": question, "context": STORY, "history": [list(turn) for turn in TALK[:number]]}
        for number, (question, _) in enumerate(TALK)
    ]
    answers = [each["talk"] for each in model.predict(rows)]
    assert [answer["text"] for answer in answers] == examples.decode(outputs).predictions
    for answer in answers:
        assert answer["type"] in ("span", "yes", "no", "unknown")
        assert answer["text"] == (
            STORY[answer["start"] : answer["end"]] if answer["type"] == "span" else answer["type"]
        )
    alone = model.predict([{"question": question, "context": STORY} for question, _ in TALK])
    assert alone[0] == model.predict([("What was closed?", STORY)])[0]


def test_kinds_of_a_users_own_predict_what_they_say(tiny_encoder: Path) -> None:
    def kind(name: str, reads: str) -> CustomKind:
        return CustomKind(
            name=name,
            reads=reads,  # type: ignore[arg-type]
            num_outputs=lambda spec: 2,
            parse_label=lambda cell, spec: float(str(cell)),
            loss=lambda outputs, labels: (outputs[:, 0] - labels) ** 2,
            predict=lambda outputs: np.round(100 * (outputs[:, 0] - outputs[:, 1])),
            metrics={"closeness": lambda predictions, labels: 0.0},
        )

    stars = task("stars", "stars", custom=kind("stars", "sequence"))
    lengths = task("lengths", "lengths", custom=kind("lengths", "token"))
    model = untrained(tiny_encoder, stars, lengths)
    (answer,) = model.predict(["a red horse"])
    assert answer["stars"]["prediction"].is_integer() and answer["stars"]["prediction"] != 0
    assert answer["lengths"]["words"] == ["a", "red", "horse"]
    assert all(value.is_integer() for value in answer["lengths"]["predictions"])
    (given,) = model.predict([{"words": ["a", "red", "horse", "\u200b"]}], tasks=["lengths"])
    assert given["lengths"]["predictions"][:3] == pytest.approx(answer["lengths"]["predictions"], abs=1)
    assert given["lengths"]["predictions"][3] is None  # a word of no token


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny RoBERTa, whose tokens hold the blank in front of a word."""
    folder = tmp_path_factory.mktemp("roberta")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        ["a red horse and a dog went to the red harbour"] * 20,
        320,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    )
    bpe.save(str(folder / "bpe.json"))
    tokenizer = RobertaTokenizerFast(tokenizer_object=bpe._tokenizer, add_prefix_space=False)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=130,
    )
    RobertaModel(RobertaConfig(vocab_size=len(tokenizer), pad_token_id=1, **sizes)).save_pretrained(folder)
    return folder


def test_words_of_a_text_have_the_tokens_of_training_also_where_blanks_belong_to_words(roberta: Path) -> None:
    tags = task("tags", "token_classification", labels=("O", "B-animal", "I-animal"))
    mood = task("mood", "classification", labels=("good", "bad"))
    model = untrained(roberta, tags, mood)
    text = "red horse, and a dog went"
    (plain,) = model.predict([text])
    words = plain["tags"]["words"]
    assert words == ["red", "horse", ",", "and", "a", "dog", "went"]
    for entity in plain["tags"]["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]
    # Without punctuation the words of a text and the words of a list are the same tokens.
    (one,) = model.predict(["red horse and a dog"])
    (other,) = model.predict([{"words": ["red", "horse", "and", "a", "dog"]}], tasks=["tags"])
    assert one["tags"] == other["tags"]
    assert set(one) == {"tags", "mood"}
