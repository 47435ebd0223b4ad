"""MultiTaskModel.predict: the answers are those of evaluation and of plain transformers,
one pass for all tasks, every kind, every refusal.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.glue_rows import COLUMNS
from helpers.predict_runs import COLOURS, CONTEXT, close, drawn_apart
from helpers.processes import ROOT, lines
from torch.nn import functional
from transformers import AutoTokenizer, BertModel

from mtdnn_ds import MultiTaskModel
from mtdnn_ds.config.errors import ConfigError, DataError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.predict.answers import entities
from mtdnn_ds.runs.evaluate import predict as predict_split
from mtdnn_ds.runs.model_folder import open_model, save_folder
from mtdnn_ds.runs.setup import prepare_run_data
from mtdnn_ds.tasks.resolve import resolve_tasks

TEXTS = [
    "a red unbelievable horse",
    "The harbour was closed.",
    "no",
    "a dog and a green hat, and " + "so on " * 8,
]
PAIRS = [(text, TEXTS[::-1][number]) for number, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def model(all_kinds_run: Path) -> MultiTaskModel:
    return MultiTaskModel.from_pretrained(str(all_kinds_run))


def dev_rows(base: Path, task: str) -> list[Any]:
    """The texts of a task's dev split, read without the project's own readers."""
    if task in COLUMNS:
        folder, columns, *_ = COLUMNS[task]
        rows = (
            (base / "glue" / folder / "dev.tsv")
            .read_text(encoding="utf-8-sig")
            .splitlines()[0 if task == "cola" else 1 :]
        )
        cells = [row.split("\t") for row in rows if row]
        return [row[columns[0]] if len(columns) == 1 else (row[columns[0]], row[columns[1]]) for row in cells]
    if task == "tags":
        sentences = (base / "tags.conll").read_text().strip().split("\n\n")
        return [{"words": [line.split("\t")[0] for line in sentence.split("\n")]} for sentence in sentences]
    if task == "span":
        (paragraph,) = json.loads((base / "span.json").read_text())["data"][0]["paragraphs"]
        return [{"question": each["question"], "context": paragraph["context"]} for each in paragraph["qas"]]
    rows = [json.loads(line) for line in (base / f"{task}.jsonl").read_text().splitlines()]
    return [{name: cell for name, cell in row.items() if name != "y"} for row in rows]


@pytest.fixture(scope="module")
def evaluated(all_kinds_run: Path, model: MultiTaskModel) -> dict[str, Any]:
    """Task -> what evaluation predicts for each row of its dev split."""
    data = prepare_run_data(model.recipe, resolve_tasks(model.recipe))
    wanted = [(index, "dev") for index, spec in enumerate(data.specs) if spec.kind != "masked_lm"]
    outputs = predict_split(model.net, wanted, data, model.settings, model.device)
    names = [data.specs[index].name for index, _ in wanted]
    return {
        name: data.examples[name]["dev"].decode(of_split).predictions
        for name, of_split in zip(names, outputs, strict=True)
    }


@pytest.mark.parametrize(
    "task", ["cola", "rte", "mrpc", "stsb", "tags", "choice", "ranking", "similar", "colours", "span"]
)
def test_answers_are_those_of_evaluation(
    task: str, all_kinds_run: Path, model: MultiTaskModel, evaluated: dict[str, Any]
) -> None:
    answers = [each[task] for each in model.predict(dev_rows(all_kinds_run.parent, task), tasks=[task])]
    theirs = evaluated[task]
    labels = next(spec.labels for spec in model.specs if spec.name == task)
    if task in ("cola", "rte", "mrpc", "colours"):
        assert [answer["label"] for answer in answers] == [labels[int(index)] for index in theirs]
        assert all(abs(sum(answer["probabilities"].values()) - 1) < 1e-12 for answer in answers)
        assert all(
            max(answer["probabilities"], key=answer["probabilities"].get) == answer["label"]
            for answer in answers
        )
    elif task == "tags":
        assert [answer["labels"] for answer in answers] == theirs
    elif task == "choice":
        assert [answer["choice"] for answer in answers] == list(theirs)
    elif task == "span":
        assert [answer["text"] for answer in answers] == theirs
        for answer in answers:
            assert (
                answer["start"] is None
                if not answer["text"]
                else CONTEXT[answer["start"] : answer["end"]] == answer["text"]
            )
    else:
        flat = np.concatenate(theirs) if task == "ranking" else np.asarray(theirs)
        ours = [answer["cosine" if task == "similar" else "score"] for answer in answers]
        np.testing.assert_allclose(ours, flat, atol=2e-5)


def test_stsb_answers_are_scores_whose_pearson_is_that_of_the_evaluation(
    all_kinds_run: Path, model: MultiTaskModel
) -> None:
    from scipy.stats import pearsonr

    gold = [
        float(row.split("\t")[-1])
        for row in (all_kinds_run.parent / "glue/STS-B/dev.tsv").read_text().splitlines()[1:]
    ]
    scores = [
        each["stsb"]["score"] for each in model.predict(dev_rows(all_kinds_run.parent, "stsb"), tasks="stsb")
    ]
    evaluation = [line["eval"] for line in lines(all_kinds_run) if "eval" in line][-1]
    assert pearsonr(scores, gold).statistic == pytest.approx(evaluation["stsb"]["pearson"], abs=1e-4)
    assert 1.0 < np.mean(scores) < 5.0  # neither ids nor 0


def test_answers_are_those_of_plain_transformers(
    all_kinds_run: Path, model: MultiTaskModel, tiny_encoder: Path
) -> None:
    weights = model.net.state_dict()
    theirs = BertModel.from_pretrained(tiny_encoder).eval()
    own = {
        name.removeprefix("encoder.model."): tensor
        for name, tensor in weights.items()
        if name.startswith("encoder.model.")
    }
    own |= {
        name.replace("encoder.pooler.", "pooler."): tensor
        for name, tensor in weights.items()
        if name.startswith("encoder.pooler.")
    }
    theirs.load_state_dict(own)
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    terms = {model.specs[term.task].name: term for term in model.layout.terms}
    answers = model.predict(TEXTS, tasks="all")
    assert all(list(answer) == ["cola", "colours", "tags"] for answer in answers)
    for text, answer in zip(TEXTS, answers, strict=True):
        encoded = tokenizer(text, return_tensors="pt", truncation=True, max_length=48, padding=False)
        with torch.no_grad():
            states = theirs(**encoded)
        for task in ("cola", "colours"):
            columns = slice(terms[task].columns.start, terms[task].columns.stop)
            logits = functional.linear(
                states.pooler_output[0], weights["heads.sequence.weight"], weights["heads.sequence.bias"]
            )[columns]
            np.testing.assert_allclose(
                list(answer[task]["probabilities"].values()), logits.softmax(0).numpy(), atol=1e-5
            )
        tags = functional.linear(
            states.last_hidden_state[0], weights["heads.token.weight"], weights["heads.token.bias"]
        )
        columns = slice(terms["tags"].columns.start, terms["tags"].columns.stop)
        first = [
            encoded.char_to_token(text.index(word) if word != "so" else text.index("so on"))
            for word in answer["tags"]["words"][:3]
        ]
        ids = tags[first][:, columns].argmax(1).tolist()
        assert answer["tags"]["labels"][:3] == [("O", "B-colour", "I-colour")[each] for each in ids]


def test_all_tasks_cost_the_sequences_of_one(model: MultiTaskModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = model.net.encoder.forward
    monkeypatch.setattr(
        model.net.encoder,
        "forward",
        lambda batch, *rest: (seen.append(batch.input_ids.numel()), forward(batch, *rest))[1],
    )
    alone = model.predict(PAIRS, tasks=["rte"])
    together = model.predict(PAIRS, tasks=["stsb", "rte", "mrpc", "ranking"])
    assert len(seen) == 2 and seen[0] == seen[1] > 0
    assert list(together[0]) == ["mrpc", "ranking", "rte", "stsb"]
    close([each["rte"] for each in alone], [each["rte"] for each in together])


def test_an_exported_folder_answers_as_its_run(
    model: MultiTaskModel, all_kinds_run: Path, tmp_path: Path
) -> None:
    """Without the run's data, and with columns by the names that the tasks were trained on."""
    opened = open_model(str(all_kinds_run), device=torch.device("cpu"))
    save_folder(
        tmp_path,
        recipe=opened.recipe,
        specs=opened.specs,
        weights=opened.model.state_dict(),
        config=opened.model.encoder.config,
        tokenizer=model.tokenizing.tokenizer,
        source={},
    )
    exported = MultiTaskModel.from_pretrained(str(tmp_path))
    texts = [
        TEXTS[0],
        PAIRS[1],
        {"a": "which?", "c": ["one", "two"]},
        {"question": "What?", "context": CONTEXT},
        {"words": ["a", "hat"]},
    ]
    assert exported.inputs == model.inputs
    for ours, theirs in zip(exported.predict(texts), model.predict(texts), strict=True):
        close(ours, theirs)


def test_the_page_about_python_is_true(all_kinds_run: Path) -> None:
    (code,) = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs/predict.md").read_text(), flags=re.MULTILINE | re.DOTALL
    )
    assert code.count('"runs/glue"') == 1 and code.count('["sst2"]') == 1
    exec(
        compile(
            code.replace("runs/glue", str(all_kinds_run)).replace("sst2", "cola"), "docs/predict.md", "exec"
        ),
        {},
    )


def test_order_and_company_change_nothing(model: MultiTaskModel) -> None:
    """Texts, pairs and choices in one call, cut into tiny micro-batches: each is answered as it is alone."""
    mixed = [
        TEXTS[3],
        PAIRS[0],
        {"text": "pick", "choices": ["a dog", "red"]},
        TEXTS[2],
        {"words": ["a", "red", "hat"]},
        PAIRS[3],
    ]
    together = model.predict(mixed, max_tokens=16)
    for text, answer in zip(mixed, together, strict=True):
        (alone,) = model.predict([text])
        assert list(answer) == list(alone)
        for task in answer:
            close(answer[task], alone[task])
    assert model.predict([]) == []


def test_a_long_context_is_searched_in_windows(model: MultiTaskModel) -> None:
    long = "The ships went. " * 40 + CONTEXT
    (answer,) = model.predict([{"question": "What closed?", "context": long}], tasks="span")
    span = answer["span"]
    assert span["text"] == ("" if span["start"] is None else long[span["start"] : span["end"]])
    assert np.isfinite(span["score"])


def test_entities_are_runs_of_one_type() -> None:
    text, places = (
        "Ann Lee of New York met Bo",
        [(0, 3), (4, 7), (8, 10), (11, 14), (15, 19), (20, 23), (24, 26)],
    )
    labels = ["B-PER", "I-PER", "O", "I-LOC", "I-LOC", "O", "B-PER"]
    assert entities(text, places, labels) == [
        {"type": "PER", "start": 0, "end": 7, "text": "Ann Lee"},
        {"type": "LOC", "start": 11, "end": 19, "text": "New York"},
        {"type": "PER", "start": 24, "end": 26, "text": "Bo"},
    ]
    assert [
        each["text"]
        for each in entities("a b c d", [(0, 1), (2, 3), (4, 5), (6, 7)], ["B-X", "B-X", "I-Y", "I-X"])
    ] == [
        "a",
        "b",
        "c",
        "d",
    ]
    assert entities("a b", [(0, 1), (2, 3)], ["NOUN", "O"]) == []


def test_words_of_a_text_have_their_characters(model: MultiTaskModel) -> None:
    (answer,) = model.predict(["  Mr. Smith's dog-like\thorse, 5.5 km"], tasks=["tags"])
    assert answer["tags"]["words"] == ["Mr", ".", "Smith's", "dog-like", "horse", ",", "5.5", "km"]


@pytest.mark.parametrize("mode", ["soft", "low_rank"])
def test_every_group_of_tasks_has_its_own_encoder(mode: str, all_kinds_run: Path) -> None:
    """With weights drawn apart, tasks of two groups on the same texts answer as they do alone."""
    changes = {
        "sharing.mode": mode,
        "sharing.groups": (
            "{one: [cola, colours, rte, mrpc], two: [tags, stsb, ranking, choice, similar, span, words]}"
        ),
    }
    recipe = load_recipe(str(all_kinds_run.parent / "recipe.yaml"), changes)
    shared = drawn_apart(recipe, resolve_tasks(recipe), by=0.05)
    together = shared.predict(TEXTS, tasks=["cola", "tags", "colours"])
    for task in ("cola", "tags", "colours"):
        close([each[task] for each in together], [each[task] for each in shared.predict(TEXTS, tasks=[task])])
    one, two = (shared.embed(TEXTS, task=task) for task in ("cola", "tags"))
    assert np.abs(one - two).max() > 1e-3
    with pytest.raises(ConfigError, match=f"--task: missing; {mode} sharing has several encoders"):
        shared.embed(TEXTS)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("layer", [-1, 1, 0])
def test_embeddings_are_those_of_transformers(
    pooling: str, layer: int, model: MultiTaskModel, tiny_encoder: Path
) -> None:
    weights = model.net.state_dict()
    theirs = BertModel.from_pretrained(tiny_encoder, add_pooling_layer=False).eval()
    theirs.load_state_dict(
        {
            name.removeprefix("encoder.model."): each
            for name, each in weights.items()
            if name.startswith("encoder.model.")
        }
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    ours = model.embed([*TEXTS, *PAIRS], pooling, layer=layer)  # type: ignore[arg-type]
    assert ours.dtype == np.float32
    for text, vector in zip([*TEXTS, *PAIRS], ours, strict=True):
        parts = (text,) if isinstance(text, str) else text
        encoded = tokenizer(*parts, return_tensors="pt", truncation=True, max_length=48, padding=False)
        with torch.no_grad():
            states = theirs(**encoded, output_hidden_states=True).hidden_states[layer][0]
        expected = states[0] if pooling == "cls" else states.mean(0)
        np.testing.assert_allclose(vector, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("texts", "tasks", "error", "said"),
    [
        (TEXTS, "stbs", ConfigError, r"tasks stbs: the model has no task 'stbs'; did you mean 'stsb'\?"),
        (TEXTS, ["words"], ConfigError, "tasks words: a masked_lm has no answer to a text"),
        (TEXTS, ["rte"], ConfigError, r"task rte \(reads two texts\): cannot read an input of 'text'"),
        (TEXTS, ["cola", "cola"], ConfigError, "'cola' stands twice"),
        ("a text", "all", DataError, "texts: give a list"),
        (["fine", 3], "all", DataError, "text 2: is a int; give a text, a pair"),
        (["fine", "  "], "all", DataError, "text 2: column 'text' is empty"),
        ([("a", 4)], "all", DataError, "text 1: column 'text_b' holds 4, not a text"),
        (
            [{"text": "a", "choices": ["one"]}],
            ["choice"],
            DataError,
            "text 1: 1 choices; a row needs two at least",
        ),
    ],
)
def test_refusals(texts: Any, tasks: Any, error: type[Exception], said: str, model: MultiTaskModel) -> None:
    with pytest.raises(error, match=said):
        model.predict(texts, tasks=tasks)


def test_layers_and_poolings_that_are_none(model: MultiTaskModel) -> None:
    with pytest.raises(
        ConfigError, match=r"--layer 3: the encoder has layers 0 \(embeddings\) to 2, or -3 to -1"
    ):
        model.embed(TEXTS, layer=3)
    with pytest.raises(ConfigError, match="--pooling max: must be one of cls, mean"):
        model.embed(TEXTS, "max")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--task cola: has no effect"):
        model.embed(TEXTS, task="cola")
    assert COLOURS[0] == "red" and not model.net.training
