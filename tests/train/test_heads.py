"""Heads of Hugging Face checkpoints: a task begins with the checkpoint's own logits, in the order of its
labels; what does not fit is refused.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from helpers.processes import run_command, write_json, zero_config

from mtdnn_ds.check.verify.small import small_recipe
from mtdnn_ds.cli import main
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.config.stages import load_runs
from mtdnn_ds.data.batches.loader import LoaderSettings
from mtdnn_ds.runs.evaluate import predict
from mtdnn_ds.runs.setup import loader_settings, prepare_run_data, run_model
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.train.init.from_hf_heads import begin_with_heads, head_problems

SIZES = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=80,
)
THEIRS = {0: "CONTRADICTION", 1: "entailment", 2: "Neutral"}
OURS = ["entailment", "neutral", "contradiction"]
PAIRS = [
    ("A man eats.", "Somebody eats."),
    ("It rains today.", "The sun shines."),
    ("Two dogs run.", "Dogs."),
]
WORDS = [["Ada", "Lovelace", "wrote", "programs"], ["It", "rains", "in", "London"]]


def write_checkpoint(folder: Path, tokenizer_from: Path, name: str, **config: Any) -> Path:
    """A random model of transformers' class `name`, saved with the tokenizer."""
    cls = getattr(transformers, name)
    torch.manual_seed(len(name))
    model = cls(cls.config_class(**{**SIZES, **config}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # biases too
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(tokenizer_from / file, folder / file)
    return folder


def write_recipe(
    folder: Path, encoder: Path, tasks: dict[str, Any], heads: dict[str, str], **more: Any
) -> Path:
    recipe = {
        "encoder": {"path": str(encoder), "max_length": 64},
        "tasks": tasks,
        "heads": heads,
        "train": {"steps": 2, "dropout": "none"},
        "optimizer": {"name": "adamw"},
        "data": {"cache_dir": str(folder / "cache")},
        **more,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("rows")
    rows = {
        "nli": [
            {"a": first, "b": second, "label": OURS[place]} for place, (first, second) in enumerate(PAIRS)
        ],
        "score": [
            {"a": first, "b": second, "label": 1.5 + place} for place, (first, second) in enumerate(PAIRS)
        ],
        "ner": [{"words": words, "tags": ["O"] * len(words)} for words in WORDS],
        "qa": [{"q": "Who wrote?", "c": "Ada wrote it.", "answers": {"text": ["Ada"], "answer_start": [0]}}],
        "choice": [{"q": "It rains.", "one": "It is wet.", "two": "It is dry.", "label": 0}],
    }
    settings: dict[str, Any] = {
        "nli": {
            "kind": "classification",
            "text_columns": ["a", "b"],
            "label_column": "label",
            "labels": OURS,
        },
        "score": {"kind": "regression", "text_columns": ["a", "b"], "label_column": "label"},
        "ner": {
            "kind": "token_classification",
            "text_columns": ["words"],
            "label_column": "tags",
            "labels": ["O", "B-PER", "I-PER"],
        },
        "qa": {"kind": "span", "text_columns": ["q", "c"], "label_column": "answers"},
        "choice": {
            "kind": "multiple_choice",
            "text_columns": ["q"],
            "choice_columns": ["one", "two"],
            "label_column": "label",
        },
    }
    for name, of_task in rows.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in of_task))
        settings[name]["files"] = {"train": str(path), "dev": str(path)}
    return settings


def our_outputs(recipe_path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Outputs of each task on its dev rows before the first step, as a run has them; and what is said."""
    recipe = load_recipe(str(recipe_path), {})
    specs, device = resolve_tasks(recipe), torch.device("cpu")
    assert head_problems(recipe, specs) == []
    data = prepare_run_data(recipe, specs)
    model = run_model(recipe, data, device=device, compute_dtype=torch.float32)
    notes = begin_with_heads(model, specs, recipe)
    settings: LoaderSettings = loader_settings(recipe, hidden_size=32, rank=0, world_size=1, device=device)
    wanted = [(task, "dev") for task in range(len(specs))]
    outputs = predict(model, wanted, data, settings, device)
    return {spec.name: of_split[0].values for spec, of_split in zip(specs, outputs, strict=True)}, notes


def their_logits(checkpoint: Path, name: str, texts: list[Any], **tokenizing: Any) -> torch.Tensor:
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = getattr(transformers, name).from_pretrained(checkpoint).eval()
    with torch.no_grad():
        batch = (
            tokenizer(*zip(*texts, strict=True), return_tensors="pt", padding=True)
            if not tokenizing
            else tokenizer(texts, **tokenizing)
        )
        known = {
            key: value
            for key, value in batch.items()
            if key in ("input_ids", "attention_mask", "token_type_ids")
        }
        return model(**known).logits


FAMILIES = {
    "BertForSequenceClassification": {},
    "RobertaForSequenceClassification": {
        "pad_token_id": 0,
        "vocab_size": 30522,
        "type_vocab_size": 2,
        "max_position_embeddings": 81,
    },
    "ElectraForSequenceClassification": {"embedding_size": 16},
    "DebertaV2ForSequenceClassification": {
        "vocab_size": 30522,
        "type_vocab_size": 2,
        "pooler_hidden_size": 32,
    },
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_task_begins_with_the_checkpoints_logits(
    name: str, tmp_path: Path, minilm: Path, tasks: dict[str, Any]
) -> None:
    checkpoint = write_checkpoint(
        tmp_path / "theirs",
        minilm,
        name,
        id2label=THEIRS,
        label2id={label: i for i, label in THEIRS.items()},
        **FAMILIES[name],
    )
    # Beside another task, so that its columns are not the bank's first ones.
    recipe = write_recipe(
        tmp_path, checkpoint, {"score": tasks["score"], "nli": tasks["nli"]}, {"nli": str(checkpoint)}
    )
    outputs, (note,) = our_outputs(recipe)
    theirs = their_logits(checkpoint, name, PAIRS)[:, [1, 2, 0]]  # entailment, neutral, contradiction
    np.testing.assert_allclose(outputs["nli"], theirs.numpy(), rtol=0, atol=1e-5)
    assert note.startswith(f"tasks.nli: begins with the head of {checkpoint}")
    assert ("becomes the pooler" in note) == (not name.startswith("Bert"))


def test_words_spans_choices_and_scores(tmp_path: Path, minilm: Path, tasks: dict[str, Any]) -> None:
    names = {
        "score": "BertForSequenceClassification",
        "ner": "BertForTokenClassification",
        "qa": "BertForQuestionAnswering",
        "choice": "BertForMultipleChoice",
    }
    labels = {
        "score": {0: "LABEL_0"},
        "ner": {0: "I-PER", 1: "O", 2: "B-PER"},
        "qa": {0: "LABEL_0", 1: "LABEL_1"},
        "choice": {0: "LABEL_0", 1: "LABEL_1"},
    }
    checkpoints = {
        task: write_checkpoint(
            tmp_path / task,
            minilm,
            name,
            id2label=labels[task],
            label2id={label: i for i, label in labels[task].items()},
        )
        for task, name in names.items()
    }
    for task, checkpoint in checkpoints.items():  # each on its own encoder
        folder = tmp_path / f"run_{task}"
        folder.mkdir()
        outputs, _ = our_outputs(
            write_recipe(folder, checkpoint, {task: tasks[task]}, {task: str(checkpoint)})
        )
        ours = torch.tensor(outputs[task])
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
        model = getattr(transformers, names[task]).from_pretrained(checkpoint).eval()
        with torch.no_grad():
            if task == "score":
                theirs = their_logits(checkpoint, names[task], PAIRS)
            elif task == "ner":
                parts = []
                for words in WORDS:
                    batch = tokenizer(words, is_split_into_words=True, return_tensors="pt")
                    ids = batch.word_ids(0)
                    firsts = [
                        place for place, word in enumerate(ids) if word is not None and word != ids[place - 1]
                    ]
                    parts.append(model(**batch).logits[0, firsts][:, [1, 2, 0]])  # O, B-PER, I-PER
                theirs = torch.cat(parts)
            elif task == "choice":
                batch = tokenizer(["It rains."] * 2, ["It is wet.", "It is dry."], return_tensors="pt")
                theirs = model(**{key: value[None] for key, value in batch.items()}).logits[0][:, None]
            else:
                answer = model(**tokenizer("Who wrote?", "Ada wrote it.", return_tensors="pt"))
                theirs = torch.stack([answer.start_logits[0], answer.end_logits[0]], dim=-1)
        if task == "qa":  # ours scores [CLS] and the context's tokens
            rows = [
                next(i for i in range(len(theirs)) if torch.allclose(theirs[i], row, rtol=0, atol=1e-5))
                for row in ours
            ]
            assert rows == sorted(rows) and len(rows) >= 4
        else:
            assert ours.shape == theirs.shape and float((ours - theirs).abs().max()) < 1e-5, task


def test_a_run_says_what_it_begins_with(
    tmp_path: Path, minilm: Path, tiny_encoder: Path, tasks: dict[str, Any]
) -> None:
    checkpoint = write_checkpoint(
        tmp_path / "theirs", minilm, "BertForSequenceClassification", id2label=THEIRS
    )
    recipe = write_recipe(tmp_path, tiny_encoder, {"nli": tasks["nli"]}, {"nli": str(checkpoint)})
    deepspeed = write_json(tmp_path / "zero2.json", zero_config(2))
    words = [
        "-m",
        "mtdnn_ds",
        "train",
        "--recipe",
        str(recipe),
        "--deepspeed_config",
        str(deepspeed),
        "--output_dir",
        str(tmp_path / "run"),
    ]
    done = run_command([*words, "--optimizer.lr", "1e-12"], OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        f"the encoder is {tiny_encoder}, so its answers are not that checkpoint's before training"
        in done.stdout + done.stderr
    )
    from safetensors.torch import load_file

    trained, theirs = (
        load_file(tmp_path / "run/best/average/model.safetensors"),
        load_file(checkpoint / "model.safetensors"),
    )
    torch.testing.assert_close(
        trained["heads.sequence.weight"].float(), theirs["classifier.weight"][[1, 2, 0]], rtol=0, atol=1e-6
    )
    assert load_recipe(str(tmp_path / "run/recipe.yaml"), {}).heads == {"nli": str(checkpoint)}


def test_what_does_not_fit_is_refused(
    tmp_path: Path,
    minilm: Path,
    tiny_encoder: Path,
    tasks: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    unnamed = write_checkpoint(tmp_path / "unnamed", minilm, "BertForSequenceClassification", num_labels=3)
    other = write_checkpoint(
        tmp_path / "other", minilm, "BertForTokenClassification", id2label={0: "O", 1: "B-LOC", 2: "I-LOC"}
    )
    san = {**tasks["nli"], "head": "san"}
    refused = {
        "nli": f"heads.nli={unnamed}: its labels are LABEL_0, LABEL_1, LABEL_2, and those of the task are "
        f"entailment, neutral, contradiction; "
        "write the real names into id2label of its config.json, if these stand for them",
        "ner": f"heads.ner={other}: its labels are O, B-LOC, I-LOC, and those of the task are O, B-PER, "
        f"I-PER; rename the labels of one side",
        "qa": f"heads.qa={other}: holds BertForTokenClassification, and a span begins with a model "
        f"ForQuestionAnswering",
        "score": f"heads.score={unnamed}: has 3 outputs (LABEL_0, LABEL_1, LABEL_2), and a regression has 1",
        "choice": f"heads.choice={tiny_encoder}: holds BertModel, and a multiple_choice begins with a "
        f"model ForMultipleChoice",
        "answers": f"heads.answers={unnamed}: transformers has no class for a classification with the "
        f"head san; remove it",
        "gone": "heads.gone=no/such/folder: there is no such folder; give a folder, a hub name "
        "(OWNER/NAME) or package:NAME/SUBFOLDER",
    }
    all_tasks = {**tasks, "answers": san, "gone": tasks["nli"]}
    heads = {
        "nli": unnamed,
        "ner": other,
        "qa": other,
        "score": unnamed,
        "choice": tiny_encoder,
        "answers": unnamed,
        "gone": "no/such/folder",
    }
    recipe = write_recipe(
        tmp_path, tiny_encoder, all_tasks, {name: str(path) for name, path in heads.items()}
    )
    assert main(["plan", str(recipe)]) == 2
    said = capsys.readouterr().err
    assert sorted(line for line in said.splitlines() if line.startswith("error: ")) == sorted(
        f"error: {line}" for line in refused.values()
    )
    with pytest.raises(
        ConfigError, match=r"heads\.nil: there is no task 'nil' in the run; did you mean 'nli'"
    ):
        load_recipe(str(write_recipe(tmp_path, tiny_encoder, {"nli": tasks["nli"]}, {"nil": "x"})), {})


def test_two_dense_layers_or_another_activation_are_refused(
    tmp_path: Path, minilm: Path, tasks: dict[str, Any]
) -> None:
    extra = FAMILIES["RobertaForSequenceClassification"]
    first = write_checkpoint(
        tmp_path / "first", minilm, "RobertaForSequenceClassification", id2label=THEIRS, **extra
    )
    second = write_checkpoint(
        tmp_path / "second",
        minilm,
        "RobertaForSequenceClassification",
        id2label={0: "LABEL_0"},
        **{**extra, "layer_norm_eps": 1e-5},
    )
    weights = {"classifier.dense.weight": torch.zeros(32, 32)}
    from safetensors.torch import load_file, save_file

    save_file(
        {**load_file(second / "model.safetensors"), **weights},
        second / "model.safetensors",
        metadata={"format": "pt"},
    )
    both = {"score": tasks["score"], "nli": tasks["nli"]}
    with pytest.raises(
        ConfigError,
        match=r"heads\.score=.*: has another dense layer than heads\.nli, and tasks share one pooler",
    ):
        our_outputs(write_recipe(tmp_path, first, both, {"nli": str(first), "score": str(second)}))
    electra = write_checkpoint(
        tmp_path / "electra", minilm, "ElectraForSequenceClassification", id2label=THEIRS, embedding_size=32
    )
    with pytest.raises(
        ConfigError, match=r"has GELUActivation after its dense layer, and the run's pooler has Tanh"
    ):
        our_outputs(write_recipe(tmp_path, first, both, {"nli": str(electra)}))


def test_heads_are_for_the_first_stage_and_for_tasks_of_the_run(
    tmp_path: Path, tiny_encoder: Path, tasks: dict[str, Any]
) -> None:
    both = {"nli": tasks["nli"], "score": tasks["score"]}
    stages = [
        {"name": "first"},
        {"name": "then"},
        {"name": "own", "heads": {"score": "c"}},
        {"name": "tune", "from": "none", "each_task": True},
    ]
    path = str(write_recipe(tmp_path, tiny_encoder, both, {"nli": "a", "score": "b"}, stages=stages))
    assert {stage.name: stage.recipe.heads for stage in load_runs(path, {})} == {
        "first": {"nli": "a", "score": "b"},
        "then": None,
        "own": {"score": "c"},
        "tune_nli": {"nli": "a"},
        "tune_score": {"score": "b"},
    }
    plain = str(write_recipe(tmp_path, tiny_encoder, both, {"nli": "a", "score": "b"}))
    assert load_recipe(plain, {"tasks": "score", "heads.score": "c"}).heads == {"score": "c"}
    assert load_recipe(plain, {"heads": "null"}).heads is None


def test_small_runs_and_adaptation_leave_them_out(
    tmp_path: Path,
    tiny_encoder: Path,
    tasks: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    said: list[str],
) -> None:
    recipe = load_recipe(str(write_recipe(tmp_path, tiny_encoder, {"nli": tasks["nli"]}, {"nli": "a"})), {})
    (tmp_path / "small").mkdir()
    assert small_recipe(recipe, tmp_path / "small", steps=1).heads is None
    assert said == ["left out of the small runs: heads (they belong to the large encoder)"]
    assert main(["adapt", str(tmp_path), "--task", "nli", "--heads.nli", "a"]) == 2
    assert "--heads.nli: is what adapt itself sets; remove it" in capsys.readouterr().err
