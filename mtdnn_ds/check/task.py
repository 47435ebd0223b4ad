"""check_task: does a task work in every part of a run? On hand-written rows and a tiny encoder, in one process, in seconds. Trains nothing.

What is checked, in this order: rows and features; losses and gradients of one micro-batch and of several cuts of the same examples,
which must add up to the same; a gradient for every parameter in every micro-batch, also in those without a row of the task; half
precision; predictions and metrics; saved weights that give the same outputs.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.check.cuts import CutResult, cut_batches, run_cut
from mtdnn_ds.check.tiny_encoder import write_tiny_encoder
from mtdnn_ds.checkpoint.weights import WEIGHTS, read_weights
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.messages import plain_problems
from mtdnn_ds.config.recipe import Recipe, TaskSettings
from mtdnn_ds.losses.forms import Losses, build_losses
from mtdnn_ds.model.multitask import MultiTaskNet
from mtdnn_ds.runs.evaluate import evaluate
from mtdnn_ds.runs.load import load_weights
from mtdnn_ds.runs.setup import RunData, loader_settings, prepare_run_data, run_model
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.tasks.spec import CustomKind, Source, TaskSpec

TASK, NEIGHBOUR = "task", "neighbour"
TOLERANCE = 1e-4  # relative, float32: the promise of exact accumulation
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckReport:
    """What a task that passed did."""

    task: str
    kind: str
    rows: int
    examples: int
    tokens: int
    units: Mapping[str, int]  # supervised units of each of its terms
    losses: Mapping[str, float]  # mean of each of its terms
    micro_batches: tuple[int, ...]  # of each cut
    parameters: int
    metrics: Mapping[str, float]

    def __str__(self) -> str:
        terms = ", ".join(f"{name} {self.losses[name]:.4f} over {self.units[name]}" for name in self.losses)
        return "\n".join(
            (
                f"{self.task} ({self.kind}): passed",
                f"  rows      {self.rows}, as {self.examples} examples of {self.tokens} tokens",
                f"  losses    {terms}",
                f"  cuts      {', '.join(map(str, self.micro_batches))} micro-batches: equal losses and gradients",
                f"  gradients of all {self.parameters:,} parameters in every micro-batch",
                f"  metrics   {', '.join(f'{name} {value:.4f}' for name, value in self.metrics.items())} (an untrained model)",
                "  weights   saved and loaded: equal outputs",
            )
        )


def check_task(
    task: TaskSpec | Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]] | str | Path,
    *,
    encoder: str | Path | None = None,
) -> CheckReport:
    """Run a few labelled rows of a task through everything that a run does with them; at least 4 rows show most.

    `task`: a TaskSpec, or the settings that a recipe has under tasks.NAME, without files, whose `kind` may also be a CustomKind.
    `rows`: column -> cell of each row, or a file in one of the kind's formats. `encoder`: as encoder.path; default a tiny random one.
    Raises ConfigError or DataError with what is wrong.
    """
    with tempfile.TemporaryDirectory(prefix="mtdnn_ds_check_") as temporary:
        folder = Path(temporary)
        rows_file = Path(rows) if isinstance(rows, (str, Path)) else _write_rows(folder, rows)
        recipe, specs = _run_of(task, rows_file, folder, encoder)
        data = prepare_run_data(recipe, specs, lambda text: None)
        return _checked(recipe, data, folder)


def _write_rows(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    if not rows:
        raise ConfigError("check_task: no rows; give at least one")
    lines = [json.dumps(dict(row), ensure_ascii=False) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "rows.jsonl"


def _run_of(
    task: TaskSpec | Mapping[str, Any], rows_file: Path, folder: Path, encoder: str | Path | None
) -> tuple[Recipe, tuple[TaskSpec, ...]]:
    """A recipe of a small classification and the task, and their specs."""
    text = rows_file.read_text(encoding="utf-8")
    words = [word for word in text.split() if word.isalnum()][:3] or ["word"]
    lines = [json.dumps({"text": word, "label": f"l{index % 2}"}) for index, word in enumerate(words)]
    (folder / "neighbour.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    neighbour = {
        "kind": "classification",
        "files": dict.fromkeys(("train", "dev"), str(folder / "neighbour.jsonl")),
        "text_columns": ["text"],
        "label_column": "label",
        "labels": ["l0", "l1"],
    }
    is_spec = isinstance(task, TaskSpec)
    settings: dict[str, Any] = (
        {}
        if isinstance(task, TaskSpec)
        else {**task, "files": dict.fromkeys(("train", "dev"), str(rows_file))}
    )
    kind = settings.get("kind")
    own_kinds: dict[str, CustomKind] = {}
    if isinstance(kind, CustomKind):
        own_kinds, settings["kind"] = {kind.name: kind}, kind.name
    path = (
        {"path": str(encoder)}
        if encoder is not None
        else {"path": str(write_tiny_encoder(folder / "encoder", [text])), "random_init": True}
    )
    values = {
        "encoder": path,
        "tasks": {NEIGHBOUR: neighbour, **({} if is_spec else {TASK: settings})},
        "train": {"steps": 1, "dropout": "none"},
        "data": {"cache_dir": str(folder / "cache")},
    }
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigError(plain_problems(error, source="check_task", flags={})) from error
    specs = resolve_tasks(recipe, own_kinds=own_kinds)
    if not isinstance(task, TaskSpec):
        return recipe, specs
    tasks = {**recipe.tasks, task.name: TaskSettings.model_validate({})}
    return recipe.model_copy(update={"tasks": tasks}), (
        *specs,
        replace(task, splits=dict.fromkeys(("train", "dev"), _source(task, rows_file))),
    )


def _source(spec: TaskSpec, rows_file: Path) -> Source:
    """The rows, with the columns that the spec's own labelled rows have."""
    labelled = [
        source
        for source in spec.splits.values()
        if source.label_column is not None or not source.text_columns
    ]
    if not labelled:
        raise ConfigError(
            f"check_task: task {spec.name} has no split that says which columns its rows have; give settings instead"
        )
    formats: dict[str, Any] = {".jsonl": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
    form = formats.get(rows_file.suffix, labelled[0].format)
    return replace(
        labelled[0],
        format=form,
        path=str(rows_file),
        config=None,
        split=None,
        header=True,
        quoted=form == "csv",
    )


def _checked(recipe: Recipe, data: RunData, folder: Path) -> CheckReport:
    model = run_model(recipe, data, device=_CPU, compute_dtype=torch.float32)
    settings = loader_settings(
        recipe, hidden_size=model.encoder.hidden_size, rank=0, world_size=1, device=_CPU
    )
    losses = build_losses(data.layout, data.specs, _CPU)
    cuts = cut_batches(data.train_sets, data.layout, settings)
    whole = cuts[0][0]
    sizes = [examples.num_examples for examples in data.train_sets]
    _check_outputs(model, losses, whole)
    results = [run_cut(model, losses, batches, sizes) for batches in cuts]
    _check_cuts(data, results)
    _check_half_precision(model, losses, whole)
    evaluation = evaluate(model, data, settings, _CPU)
    _check_saved_weights(recipe, data, model, whole, folder)
    spec, examples = data.specs[-1], data.train_sets[-1]
    own = data.layout.terms_of(len(data.specs) - 1)
    names = {term: data.layout.terms[term].suffix or data.layout.terms[term].form for term in own}
    return CheckReport(
        task=spec.name,
        kind=spec.kind,
        rows=examples.split.num_rows,
        examples=examples.num_examples,
        tokens=int(examples.lengths.sum()),
        units={name: int(results[0].units[term]) for term, name in names.items()},
        losses={
            name: float(results[0].totals[term] / max(results[0].units[term], 1))
            for term, name in names.items()
        },
        micro_batches=tuple(result.num_micro_batches for result in results),
        parameters=sum(gradient.numel() for gradient in results[0].gradients.values()),
        metrics=evaluation.metrics[spec.name],
    )


def _check_outputs(model: MultiTaskNet, losses: Losses, whole: PackedBatch) -> None:
    """Losses of the task's rows are finite, and depend on what the model says of them."""
    outputs = model(whole)
    leaves = {form: of_form.detach().requires_grad_() for form, of_form in outputs.items()}
    sums = losses.sums(losses.of_batch(leaves, whole.targets))
    for term_id in model.layout.terms_of(len(model.layout.task_names) - 1):
        term = model.layout.terms[term_id]
        total, where = sums.total[term_id], f"the loss{f' of {term.suffix}' if term.suffix else ''}"
        if not whole.unit_counts[term_id]:
            raise ConfigError(f"check_task: no row has anything for {where} to learn; give rows that have")
        if not bool(total.isfinite()):
            raise ConfigError(f"check_task: {where} is {total.item()}; it must be a finite number")
        (gradient,) = torch.autograd.grad(total, leaves[term.form], retain_graph=True, allow_unused=True)
        if gradient is None or not bool(gradient.any()):
            raise ConfigError(
                f"check_task: {where} does not depend on the model's outputs (no gradient); is something detached from the graph?"
            )


def _check_cuts(data: RunData, results: Sequence[CutResult]) -> None:
    whole, problems = results[0], []
    missing = dict.fromkeys(name for result in results for name in result.without_gradient)
    if missing:
        problems.append(
            f"check_task: no gradient for {', '.join(list(missing)[:4])} in some micro-batch; every parameter must take part in every forward"
        )
    for cut in results[1:]:
        for term_id in data.layout.terms_of(len(data.specs) - 1):
            one, many = whole.totals[term_id], cut.totals[term_id]
            if abs(many - one) > TOLERANCE * max(abs(one), 1e-3):
                problems.append(
                    f"check_task: the losses of all rows sum up to {one:.6g} in one micro-batch and to {many:.6g} in {cut.num_micro_batches}; "
                    "a row's loss must not depend on the rows beside it (does the loss divide by their number?)"
                )
        largest = max(float(gradient.abs().max()) for gradient in whole.gradients.values())
        far = [
            name
            for name, gradient in whole.gradients.items()
            if float((cut.gradients[name] - gradient).abs().max()) > TOLERANCE * max(largest, 1e-6)
        ]
        if far and not problems:
            problems.append(
                f"check_task: the gradient of {far[0]} differs between one micro-batch and {cut.num_micro_batches}, although the losses are equal; "
                "a row's outputs must not depend on the rows beside it (batch normalisation?)"
            )
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def _check_half_precision(model: MultiTaskNet, losses: Losses, whole: PackedBatch) -> None:
    """A run on GPUs computes in bf16: parameters and hidden states are, outputs and losses are float32."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    try:
        with torch.no_grad():
            sums = losses.sums(losses.of_batch(half(whole), whole.targets))
    except RuntimeError as error:
        raise ConfigError(
            f"check_task: fails with a model in bf16, as runs on GPUs have it: {error}"
        ) from error
    if not bool(sums.total.isfinite().all()):
        raise ConfigError("check_task: with a model in bf16 the loss is not finite")


def _check_saved_weights(
    recipe: Recipe, data: RunData, model: MultiTaskNet, whole: PackedBatch, folder: Path
) -> None:
    """A model drawn from another seed gives the same outputs with the saved weights."""
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}, folder / WEIGHTS
    )
    other = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": 1})})
    loaded = run_model(other, data, device=_CPU, compute_dtype=torch.float32)
    load_weights(loaded, read_weights(folder), folder)
    with torch.no_grad():
        before, after = model.eval()(whole), loaded.eval()(whole)
    different = [form for form in before if not torch.equal(before[form], after[form])]
    if different:
        raise ConfigError(
            f"check_task: saved and loaded weights give other outputs ({', '.join(different)}); "
            "everything that a head computes with must be a parameter or a persistent buffer"
        )
