"""Distillation from end to end: two trained teachers with different encoders and tokenizers, a student of
both, its resumption.

namisan/mt-dnn's distillation crashes when it is switched on; here two ranks train with it under ZeRO 2,
resume bit for bit, and what is stored equals a plain Hugging Face forward.
"""

from __future__ import annotations

import csv
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.processes import lines, run_command, run_jobs, training_lines, write_json, zero_config
from helpers.tiny_encoders import keep_capitals, write_tiny_encoder
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_weights
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy, kl_div
from transformers import AutoTokenizer, BertForSequenceClassification

from mtdnn_ds.config.errors import CheckpointError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.data.batches.collate import ExampleSets, collate
from mtdnn_ds.losses.distillation import Distillation
from mtdnn_ds.losses.forms import build_losses
from mtdnn_ds.runs.setup import RunData, build_plan, prepare_run_data, run_model, settings_dict
from mtdnn_ds.runs.state import RunState, check_fit
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.train.distillation.teacher_outputs import find_teacher_outputs, fingerprints, with_soft_targets

pytestmark = pytest.mark.slow

RANKS = 2
LABELS = {"pair": ["no", "maybe", "yes"], "one": ["neg", "pos"], "score": None}
WORDS = (
    "red",
    "blue",
    "Green",
    "small",
    "Large",
    "old",
    "new",
    "fast",
    "slow",
    "cat",
    "Dog",
    "bird",
    "house",
    "car",
    "Paris",
    "music",
)
EXACT_FIELDS = ("step", "loss", "task_loss", "lr", "grad_norm", "micro_batches")


@dataclass(frozen=True)
class Runs:
    folder: Path
    said: dict[str, str]


def _rows(task: str, number: int, source: random.Random) -> list[list[str]]:
    texts = [
        [" ".join(source.choices(WORDS, k=source.randint(2, 14))) for _ in range(2)] for _ in range(number)
    ]
    labels = LABELS[task]
    return [[*pair, source.choice(labels) if labels else f"{source.random() * 5:.2f}"] for pair in texts]


def _task(folder: Path, task: str) -> dict[str, Any]:
    source = random.Random(task)
    files = {}
    for split, number in (("train", 26), ("dev", 8)):
        path = folder / f"{task}_{split}.csv"
        with path.open("w", newline="") as stream:
            csv.writer(stream).writerows([["first", "second", "label"], *_rows(task, number, source)])
        files[split] = str(path)
    kind = {"kind": "regression"} if task == "score" else {"kind": "classification", "labels": LABELS[task]}
    columns = ["first"] if task == "one" else ["first", "second"]
    return {**kind, "files": files, "text_columns": columns, "label_column": "label", "dropout": 0.2}


def _cased_encoder(folder: Path, minilm: Path) -> Path:
    """Another shape and another tokenizer."""
    return keep_capitals(write_tiny_encoder(folder, minilm, hidden_size=48, num_hidden_layers=1))


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, minilm: Path) -> Runs:
    """Teachers `wide` (all tasks) and `cased` (not score), `student` of both, and `resumed`, which goes on
    from the student's step 3.
    """
    folder = tmp_path_factory.mktemp("distillation")
    tasks = {task: _task(folder, task) for task in LABELS}
    common = {
        "batch": {"examples_per_step": 12, "max_tokens_per_micro_batch": 128},
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "data": {"cache_dir": str(folder / "cache")},
    }
    recipes = {
        "wide": {
            "encoder": {"path": str(tiny_encoder), "max_length": 32},
            "tasks": tasks,
            "train": {"steps": 2},
        },
        "cased": {
            "encoder": {"path": str(_cased_encoder(folder / "encoder", minilm)), "max_length": 20},
            "tasks": {"one": tasks["one"], "pair": tasks["pair"]},
            "train": {"steps": 2, "seed": 1},
        },
        "student": {
            "encoder": {"path": str(tiny_encoder), "max_length": 24},
            "tasks": tasks,
            "train": {"steps": 6, "save_every": 3, "seed": 2},
            "distillation": {
                "teachers": [str(folder / "wide"), str(folder / "cased")],
                "temperature": 2.0,
                "weight": 0.7,
            },
        },
    }
    for name, recipe in recipes.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**common, **recipe}, sort_keys=False))
    write_json(folder / "zero2.json", zero_config(2))
    said = run_jobs([_job(folder, name) for name in recipes], folder, RANKS)
    resumed = {
        **_job(folder, "student"),
        "output_dir": str(folder / "resumed"),
        "resume": str(folder / "student/checkpoints/step_3"),
    }
    return Runs(folder=folder, said={**said, **run_jobs([resumed], folder, RANKS)})


def _job(folder: Path, name: str) -> dict[str, Any]:
    return {
        "recipe": str(folder / f"{name}.yaml"),
        "deepspeed_config": str(folder / "zero2.json"),
        "output_dir": str(folder / name),
    }


def _student_data(folder: Path) -> tuple[Any, RunData]:
    recipe = load_recipe(str(folder / "student.yaml"), {})
    return recipe, prepare_run_data(recipe, resolve_tasks(recipe))


def _stored(trained_runs: Runs, teacher: str, task: str) -> dict[str, np.ndarray]:
    """Outputs of one teacher as its keys name them."""
    recipe, data = _student_data(trained_runs.folder)
    teacher_outputs = {
        outputs.teacher.run.folder.path.name: outputs for outputs in find_teacher_outputs(recipe, data)
    }
    return load_file(
        trained_runs.folder
        / "cache"
        / f"{task}-train-{teacher_outputs[teacher].keys[task][:16]}.soft.safetensors"
    )


def _hugging_face_outputs(
    trained_runs: Runs, teacher: str, task: str, first_column: int, encoder: Path, max_length: int
) -> np.ndarray:
    """Padded inputs through BertForSequenceClassification with the teacher's weights."""
    weights = load_weights(trained_runs.folder / teacher / "best" / "average" / "model.safetensors")
    labels = LABELS[task]
    num_outputs = len(labels) if labels else 1
    model = BertForSequenceClassification.from_pretrained(encoder, num_labels=num_outputs).eval()
    columns = slice(first_column, first_column + num_outputs)
    state = {
        f"bert.{name.removeprefix('encoder.model.')}": value
        for name, value in weights.items()
        if name.startswith("encoder.model.")
    }
    state |= {
        f"bert.pooler.{name.removeprefix('encoder.pooler.')}": value
        for name, value in weights.items()
        if name.startswith("encoder.pooler.")
    }
    state |= {f"classifier.{part}": weights[f"heads.sequence.{part}"][columns] for part in ("weight", "bias")}
    missing, unexpected = model.load_state_dict(
        {name: value.float() for name, value in state.items()}, strict=False
    )
    assert (missing, unexpected) == ([], [])
    with (trained_runs.folder / f"{task}_train.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    texts = [[row["first"] for row in rows], *([] if task == "one" else [[row["second"] for row in rows]])]
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    inputs = tokenizer(*texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits.numpy()


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("teacher", "task", "first_column", "max_length"),
    [
        ("wide", "pair", 0, 32),
        ("wide", "one", 3, 32),
        ("wide", "score", 5, 32),
        ("cased", "one", 0, 20),
        ("cased", "pair", 2, 20),
    ],
)
def test_stored_outputs_equal_a_padded_hugging_face_forward(
    trained_runs: Runs, tiny_encoder: Path, teacher: str, task: str, first_column: int, max_length: int
) -> None:
    encoder = tiny_encoder if teacher == "wide" else trained_runs.folder / "encoder"
    theirs = _hugging_face_outputs(trained_runs, teacher, task, first_column, encoder, max_length)
    ours = _stored(trained_runs, teacher, task)
    np.testing.assert_allclose(ours["outputs"], theirs, rtol=0, atol=1e-5)
    assert ours["offsets"].tolist() == list(range(27))
    assert np.abs(theirs).max() > 1e-2, "a trained teacher should say something"


@pytest.mark.distributed
def test_the_two_teachers_really_read_other_tokens(trained_runs: Runs, tiny_encoder: Path) -> None:
    ids = [
        AutoTokenizer.from_pretrained(path)("Green Dog in Paris")["input_ids"]
        for path in (tiny_encoder, trained_runs.folder / "encoder")
    ]
    assert ids[0] != ids[1]


@pytest.mark.distributed
def test_resume_is_bitwise_with_distillation(trained_runs: Runs) -> None:
    student, resumed = (
        [
            {field: line[field] for field in EXACT_FIELDS}
            for line in training_lines(trained_runs.folder / name)
        ]
        for name in ("student", "resumed")
    )
    assert len(student) == 6 and resumed == student[3:]
    assert "resuming after step 3 of 6" in trained_runs.said["resumed"]


@pytest.mark.distributed
def test_answers_are_computed_once(trained_runs: Runs) -> None:
    said = trained_runs.said["student"]
    assert (
        "wide/best/average: answered 78 examples in" in said
        and "cased/best/average: answered 52 examples in" in said
    )
    assert "answered" not in trained_runs.said["resumed"]
    assert len(list((trained_runs.folder / "cache").glob("*.soft.safetensors"))) == 5
    assert list((trained_runs.folder / "cache").glob("*.building-*")) == []


@pytest.mark.distributed
def test_every_example_learns_its_own_answers(trained_runs: Runs, tiny_encoder: Path) -> None:
    """A step's losses, from Hugging Face's outputs for the teachers and torch's own functions."""
    recipe, data = _student_data(trained_runs.folder)
    device = torch.device("cpu")
    with_answers = with_soft_targets(recipe, data, find_teacher_outputs(recipe, data), device=device)
    step = build_plan(recipe, data).step(1)
    batch = collate(
        step.task_ids,
        step.rows,
        step.epochs,
        ExampleSets(
            examples=with_answers.train_sets,
            tasks=range(3),
            layout=data.layout,
            filler_ids=np.zeros(0),
        ),
    )
    model = run_model(recipe, data, device=device, compute_dtype=torch.float32).eval()
    outputs = model(batch)
    ours = build_losses(data.layout, data.specs, device, Distillation(temperature=2.0, weight=0.7)).of_batch(
        outputs, batch.targets
    )

    heads = {"pair": slice(0, 3), "one": slice(3, 5), "score": slice(5, 6)}
    teachers = {
        "pair": [("wide", 0, tiny_encoder, 32), ("cased", 2, trained_runs.folder / "encoder", 20)],
        "one": [("wide", 3, tiny_encoder, 32), ("cased", 0, trained_runs.folder / "encoder", 20)],
        "score": [("wide", 5, tiny_encoder, 32)],
    }
    answers = {
        task: [
            torch.tensor(_hugging_face_outputs(trained_runs, name, task, first, encoder, most))
            for name, first, encoder, most in named
        ]
        for task, named in teachers.items()
    }
    seen = set()
    for form, targets in batch.targets.items():
        for row, example in enumerate(targets.examples[targets.groups]):
            task, number = list(heads)[batch.example_tasks[example]], int(batch.example_rows[example])
            own = outputs[form][row, heads[task]]
            if task == "score":
                expected = (
                    0.7 * (own - answers[task][0][number]) ** 2 + 0.3 * (own - targets.labels[row]) ** 2
                )
            else:
                soft = torch.stack([(of_one[number] / 2).softmax(0) for of_one in answers[task]]).mean(0)
                expected = 0.7 * 4 * kl_div(
                    (own / 2).log_softmax(0), soft, reduction="sum"
                ) + 0.3 * cross_entropy(own, targets.labels[row].long())
            torch.testing.assert_close(ours[form].losses[row], expected.squeeze(), rtol=0, atol=1e-5)
            seen.add((task, number))
    assert len(seen) == 12 and {task for task, _ in seen} == set(heads)


@pytest.mark.distributed
def test_other_teacher_weights_are_noticed_and_refused_when_a_run_goes_on(
    trained_runs: Runs, tmp_path: Path
) -> None:
    saved = json.loads((trained_runs.folder / "student/checkpoints/step_3/run_state.json").read_text())
    recipe, data = _student_data(trained_runs.folder)
    plan = build_plan(recipe, data)

    def state(teachers: list[str]) -> RunState:
        changed = load_recipe(
            str(trained_runs.folder / "student.yaml"), {"distillation.teachers": ",".join(teachers)}
        )
        prints = fingerprints(find_teacher_outputs(changed, data))
        return RunState(
            step=0,
            recipe=settings_dict(changed),
            plan=plan.state_dict(0),
            topology=saved["topology"],
            teachers=prints,
        )

    def copy(name: str) -> Path:
        folder = tmp_path / name
        (folder / "best" / "average").mkdir(parents=True)
        (folder / "recipe.yaml").write_text((trained_runs.folder / "wide" / "recipe.yaml").read_text())
        return folder

    weights = load_weights(trained_runs.folder / "wide" / "best" / "average" / "model.safetensors")
    save_file(weights, copy("moved") / "best" / "average" / "model.safetensors")
    weights["heads.sequence.bias"] = weights["heads.sequence.bias"] + 1e-3
    save_file(weights, copy("changed") / "best" / "average" / "model.safetensors")

    cased = str(trained_runs.folder / "cased")
    check_fit(
        "step_3", saved, state([cased, str(tmp_path / "moved")]), plan
    )  # the same weights elsewhere, named in another order
    with pytest.raises(CheckpointError) as caught:
        check_fit("step_3", saved, state([str(tmp_path / "changed"), cased]), plan)
    assert [problem.split(" were ")[0] for problem in caught.value.problems[:-1]] == [
        "step_3: the teachers of 'one'",
        "step_3: the teachers of 'pair'",
        "step_3: the teachers of 'score'",
    ]
    assert caught.value.problems[0].endswith(
        "now: their weights, or how they read the examples, have changed"
    )


@pytest.mark.distributed
def test_the_verb_stores_answers_and_scores_every_teacher(trained_runs: Runs, tmp_path: Path) -> None:
    done = run_command(
        [
            "-m",
            "mtdnn_ds",
            "distill",
            str(trained_runs.folder / "student.yaml"),
            "--data.cache_dir",
            str(tmp_path),
        ]
    )
    assert done.returncode == 0, done.stderr
    titles = [line for line in done.stdout.splitlines() if line.startswith("dev metrics of ")]
    assert titles == [
        f"dev metrics of {trained_runs.folder / 'wide'}/best/average:",
        f"dev metrics of {trained_runs.folder / 'cased'}/best/average:",
        "dev metrics of the mean of 2 teachers:",
    ]
    assert done.stdout.endswith(f"the teachers' answers for pair, one, score are ready in {tmp_path}\n")
    ours, theirs = (
        sorted(folder.glob("*.soft.safetensors")) for folder in (tmp_path, trained_runs.folder / "cache")
    )
    assert [file.name for file in ours] == [file.name for file in theirs] and len(ours) == 5
    for one_rank, two_ranks in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(
            load_file(one_rank)["outputs"], load_file(two_ranks)["outputs"], rtol=0, atol=1e-5
        )
    last_evaluation = [line for line in lines(trained_runs.folder / "wide") if "eval" in line][-1]
    shown = float(done.stdout.split("dev metrics of ")[1].split("average  ")[1].split()[0])
    assert shown == pytest.approx(last_evaluation["average"], abs=1e-3)
