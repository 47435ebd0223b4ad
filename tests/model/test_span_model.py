"""Loss and gradients of span tasks equal transformers' BertForQuestionAnswering;
a step does not depend on how it was cut; a whole run.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.processes import lines, run_jobs, training_lines, write_json, zero_config
from helpers.question_tasks import made, span_task, task
from torch.nn.functional import cross_entropy
from transformers import BertForQuestionAnswering

from mtdnn_ds.batch import Targets
from mtdnn_ds.data.batches.collate import ExampleSets, collate
from mtdnn_ds.losses.forms import build_losses
from mtdnn_ds.losses.objective import micro_batch_loss, task_scales, term_coefficients
from mtdnn_ds.losses.span import span_losses
from mtdnn_ds.losses.sums import term_table
from mtdnn_ds.model.multitask import MultiTaskNet, build_model
from mtdnn_ds.tasks.layout import head_layout
from mtdnn_ds.tasks.spec import TaskSpec


def targets(lengths: list[int], starts: list[int], ends: list[int], terms: list[int]) -> Targets:
    labels = torch.zeros(sum(lengths))
    begins = np.cumsum([0, *lengths[:-1]])
    for begin, start, end in zip(begins, starts, ends, strict=True):
        labels[begin + start] += 1
        labels[begin + end] += 2
    groups = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return Targets(
        rows=torch.arange(sum(lengths)),
        term_ids=torch.tensor(terms)[groups],
        labels=labels,
        groups=groups,
        examples=np.arange(len(lengths)),
    )


def test_span_loss_is_the_mean_of_two_cross_entropies() -> None:
    specs = [TaskSpec(name=name, kind="span", labels=(), metrics=(), splits={}) for name in ("a", "b")]
    table = term_table(head_layout(specs), "cpu")
    generator = torch.Generator().manual_seed(0)
    lengths, starts, ends, terms = [3, 1, 7], [0, 0, 2], [2, 0, 2], [0, 1, 1]
    ours = (30 * torch.randn(11, 4, generator=generator)).double().requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    losses = span_losses(ours, targets(lengths, starts, ends, terms), table)
    expected = []
    for scores, start, end, term in zip(theirs.split(lengths), starts, ends, terms, strict=True):
        own = scores[:, 2 * term : 2 * term + 2]
        expected.append(
            (cross_entropy(own[:, 0], torch.tensor(start)) + cross_entropy(own[:, 1], torch.tensor(end))) / 2
        )
    torch.testing.assert_close(losses.double(), torch.stack(expected), atol=1e-5, rtol=1e-5)
    weights = torch.tensor([1.0, 2.0, -1.0])
    (losses * weights).sum().backward()
    (torch.stack(expected) * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-5)


def test_a_batch_without_spans_keeps_the_head_in_the_graph() -> None:
    table = term_table(
        head_layout([TaskSpec(name="a", kind="span", labels=(), metrics=(), splits={})]), "cpu"
    )
    outputs = torch.zeros(0, 2, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    losses = span_losses(
        outputs,
        Targets(rows=none, term_ids=none, labels=torch.zeros(0), groups=none, examples=np.zeros(0, np.int64)),
        table,
    )
    assert losses.shape == (0,)
    losses.sum().backward()
    assert outputs.grad is not None


@pytest.fixture(scope="module")
def sets(
    tiny_encoder: Path, official_files: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tuple[TaskSpec, ...], list[Any]]:
    """SQuAD 2.0's sample (with questions without an answer) and CoQA's story, in windows of 64 tokens."""
    folder = tmp_path_factory.mktemp("span_model")
    squad = span_task(official_files / "SQuAD/dev-v2.0-sample.json", null_threshold=0.0)
    coqa = task({}, {"coqa_dir": str(official_files / "CoQA")}, name="coqa")
    return (squad, coqa), [made(spec, tiny_encoder, folder, 64) for spec in (squad, coqa)]


CHOSEN = [[0, 1, 7, 40, 41, 300], [0, 5, 9, 30]]  # windows of each task


def step(model: MultiTaskNet, specs: tuple[TaskSpec, ...], sets: list[Any], cuts: list[list[int]]) -> float:
    """The objective of the chosen windows, cut into micro-batches,
    with its gradients added up in the model.
    """
    layout = head_layout(specs)
    losses = build_losses(layout, specs, "cpu")
    index = np.repeat([0, 1], [len(chosen) for chosen in CHOSEN])
    windows = np.concatenate(CHOSEN)
    batches = [
        collate(
            index[cut],
            windows[cut],
            np.zeros(len(cut), dtype=np.int64),
            ExampleSets(examples=sets, tasks=range(2), layout=layout, filler_ids=np.array([101, 102])),
        )
        for cut in map(np.array, cuts)
    ]
    units = np.sum([batch.unit_counts for batch in batches], axis=0)
    assert units.tolist() == [6, 4, 4]
    scales = task_scales(np.array([6, 4]), "examples", log_spaces=(0, 0), explicit=(1, 1))
    coefficients = torch.tensor(term_coefficients(scales, units, layout.task_of_term), dtype=torch.float32)
    total = 0.0
    for batch in batches:
        loss = micro_batch_loss(losses.sums(losses.of_batch(model(batch), batch.targets)), coefficients)
        loss.backward()
        total += loss.item()
    return total


def test_loss_and_gradients_equal_bert_for_question_answering(
    sets: tuple[tuple[TaskSpec, ...], list[Any]], tiny_encoder: Path
) -> None:
    specs, examples = sets
    ours = build_model(encoder_path=str(tiny_encoder), specs=specs, layout=head_layout(specs), dropout="none")
    for parameter in ours.parameters():  # away from the small initial values
        parameter.data += 0.05 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
        )
    theirs = []
    for number, own in enumerate(CHOSEN):
        model = BertForQuestionAnswering.from_pretrained(tiny_encoder, dtype=torch.float32).eval()
        model.bert.load_state_dict(
            {key: value for key, value in ours.encoder.model.state_dict().items() if "pooler" not in key}
        )
        bank = ours.heads["token"]
        model.qa_outputs.load_state_dict(
            {
                "weight": bank.weight[2 * number : 2 * number + 2],
                "bias": bank.bias[2 * number : 2 * number + 2],
            }
        )
        losses = []
        for window in own:
            gathered = examples[number].gather(np.array([window]), np.array([0]))
            labels = gathered.targets[0].labels.astype(int)
            inputs = {"input_ids": gathered.input_ids, "token_type_ids": gathered.token_type_ids}
            result = model(
                **{key: torch.from_numpy(value)[None] for key, value in inputs.items()},
                start_positions=torch.tensor([int(np.flatnonzero(labels & 1)[0])]),
                end_positions=torch.tensor([int(np.flatnonzero(labels & 2)[0])]),
                output_hidden_states=True,
            )
            losses.append(result.loss)
            if (
                number == 1
            ):  # transformers has no model with an answer type: BERT's own pooler and a linear layer
                pooled = ours.encoder.pooler(result.hidden_states[-1][:, :1])
                head = ours.heads["sequence"]
                losses.append(
                    cross_entropy(
                        pooled @ head.weight.T + head.bias, torch.tensor([int(gathered.targets[1].labels[0])])
                    )
                )
        theirs.append((model, torch.stack(losses).sum() / 10))
    expected = theirs[0][1] + theirs[1][1]
    expected.backward()
    references = [dict(model.bert.named_parameters()) for model, _ in theirs]
    sequence_gradient = ours.heads["sequence"].weight.grad.clone()
    ours.zero_grad()
    loss = step(ours, specs, examples, [[9, 0, 4, 7], [1, 2, 3, 5, 6, 8]])
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    for name, parameter in ours.encoder.model.named_parameters():
        gradient = sum(reference[name].grad for reference in references)
        torch.testing.assert_close(
            parameter.grad, gradient, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    heads = torch.cat([model.qa_outputs.weight.grad for model, _ in theirs])
    torch.testing.assert_close(ours.heads["token"].weight.grad, heads, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.heads["sequence"].weight.grad, sequence_gradient, atol=1e-5, rtol=1e-5)


def test_a_step_does_not_depend_on_its_micro_batches(
    sets: tuple[tuple[TaskSpec, ...], list[Any]], tiny_encoder: Path
) -> None:
    specs, examples = sets
    results = []
    for cuts in ([list(range(10))], [[3], [9, 1], [0, 2, 4, 5, 6], [8, 7]]):
        model = build_model(
            encoder_path=str(tiny_encoder), specs=specs, layout=head_layout(specs), dropout="none"
        )
        loss = step(model, specs, examples, cuts)
        results.append((loss, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-6, rtol=1e-5)


@pytest.mark.distributed
def test_a_run_trains_and_scores_squad_and_coqa_on_two_ranks(
    tiny_encoder: Path, official_files: Path, tmp_path: Path
) -> None:
    data = json.loads((official_files / "SQuAD/dev-v2.0-sample.json").read_text())
    for name, part in (("train", slice(0, 2)), ("dev", slice(2, 3))):
        articles = [{**article, "paragraphs": article["paragraphs"][part]} for article in data["data"]]
        (tmp_path / f"{name}-v2.0.json").write_text(json.dumps({"data": articles}))
    recipe = {
        "encoder": {"path": str(tiny_encoder), "max_length": 96},
        "tasks": {"squad_v2": {"max_answer_tokens": 20}, "coqa": {"history_turns": 1}},
        "data": {
            "squad_dir": str(tmp_path),
            "coqa_dir": str(official_files / "CoQA"),
            "cache_dir": str(tmp_path / "cache"),
        },
        "batch": {"examples_per_step": 8, "max_tokens_per_micro_batch": 512},
        "mixture": {"rates": "uniform"},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "train": {"steps": 4, "dropout": "none"},
    }
    path = write_json(tmp_path / "recipe.yaml", recipe)
    zero = write_json(tmp_path / "zero3.json", zero_config(3))
    run_jobs(
        [{"recipe": str(path), "deepspeed_config": str(zero), "output_dir": str(tmp_path / "run")}],
        tmp_path,
        world_size=2,
    )
    trained = training_lines(tmp_path / "run")
    assert len(trained) == 4 and all(
        math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"]) for line in trained
    )
    (evaluated,) = [line["eval"] for line in lines(tmp_path / "run") if "eval" in line]
    assert {task: sorted(values) for task, values in evaluated.items()} == {
        "squad_v2": ["exact_match", "token_f1"],
        "coqa": ["coqa_f1"],
    }
    assert all(0 <= value <= 1 for values in evaluated.values() for value in values.values())
