"""check_task: does a task work in every part of a run? On hand-written rows and a tiny encoder, in one
process, in seconds. Trains nothing.

What is checked, in this order: rows and features; losses and gradients of one micro-batch and of several cuts
of the same examples, which must add up to the same; a gradient for every parameter in every micro-batch, also
in those without a row of the task; half precision; predictions and metrics; saved weights that give the same
outputs.
"""

from __future__ import annotations

import copy
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.check.cuts import CutResult, cut_batches, run_cut
from mtdnn_ds.check.task_run import run_of_task
from mtdnn_ds.checkpoint.weights import WEIGHTS, read_weights
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.losses.forms import Losses, build_losses
from mtdnn_ds.model.multitask import MultiTaskNet
from mtdnn_ds.monitor.console import silenced
from mtdnn_ds.runs.evaluate import evaluate
from mtdnn_ds.runs.load import load_weights
from mtdnn_ds.runs.setup import RunData, loader_settings, prepare_run_data, run_model
from mtdnn_ds.tasks.spec import TaskSpec

log = logging.getLogger(__name__)

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
        losses = [f"{name} {loss:.4f} over {self.units[name]}" for name, loss in self.losses.items()]
        cuts = ", ".join(map(str, self.micro_batches))
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items())
        lines = (
            f"{self.task} ({self.kind}): passed",
            f"  rows      {self.rows}, as {self.examples} examples of {self.tokens} tokens",
            f"  losses    {', '.join(losses)}",
            f"  cuts      {cuts} micro-batches: equal losses and gradients",
            f"  gradients of all {self.parameters:,} parameters in every micro-batch",
            f"  metrics   {metrics} (an untrained model)",
            "  weights   saved and loaded: equal outputs",
        )
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Checked:
    """The run whose parts are checked."""

    recipe: Recipe
    data: RunData
    model: MultiTaskNet
    losses: Losses
    whole: PackedBatch  # all examples in one micro-batch

    @property
    def terms(self) -> Sequence[int]:
        """Of the task, which is the last one."""
        return self.data.layout.terms_of(len(self.data.specs) - 1)


def check_task(
    task: TaskSpec | Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]] | str | Path,
    *,
    encoder: str | Path | None = None,
) -> CheckReport:
    """Run a few labelled rows of a task through everything that a run does with them; at least 4 rows show
    most.

    `task`: a TaskSpec, or the settings that a recipe has under tasks.NAME, without files, whose `kind` may
    also be a CustomKind. `rows`: column -> cell of each row, or a file in one of the kind's formats.
    `encoder`: as encoder.path; default a tiny random one. Raises ConfigError or DataError with what is wrong.
    """
    with tempfile.TemporaryDirectory(prefix="mtdnn_ds_check_") as temporary:
        folder = Path(temporary)
        rows_file = Path(rows) if isinstance(rows, (str, Path)) else _write_rows(folder, rows)

        recipe, specs = run_of_task(task, rows_file, folder, encoder)
        with silenced():
            data = prepare_run_data(recipe, specs)
        return _checked(recipe, data, folder)


def _write_rows(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    if not rows:
        raise ConfigError("check_task: no rows; give at least one")

    lines = [json.dumps(dict(row), ensure_ascii=False) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "rows.jsonl"


def _checked(recipe: Recipe, data: RunData, folder: Path) -> CheckReport:
    """All checks, in the order of the module's docstring."""
    model = run_model(recipe, data, device=_CPU, compute_dtype=torch.float32)
    settings = loader_settings(
        recipe, hidden_size=model.encoder.hidden_size, rank=0, world_size=1, device=_CPU
    )
    losses = build_losses(data.layout, data.specs, _CPU)
    cuts = cut_batches(data.train_sets, data.layout, settings)
    run = _Checked(recipe=recipe, data=data, model=model, losses=losses, whole=cuts[0][0])

    _check_outputs(run)
    num_examples = [examples.num_examples for examples in data.train_sets]
    results = [run_cut(model, losses, batches, num_examples) for batches in cuts]
    _check_cuts(run, results)
    _check_half_precision(run)
    evaluation = evaluate(model, data, settings, _CPU)
    _check_saved_weights(run, folder)

    return _report(run, results, evaluation.metrics)


def _report(
    run: _Checked, results: Sequence[CutResult], metrics: Mapping[str, Mapping[str, float]]
) -> CheckReport:
    spec, examples, whole = run.data.specs[-1], run.data.train_sets[-1], results[0]
    terms = run.data.layout.terms
    names = {term_id: terms[term_id].suffix or terms[term_id].form for term_id in run.terms}
    losses = {
        name: float(whole.totals[term_id] / max(whole.units[term_id], 1)) for term_id, name in names.items()
    }

    return CheckReport(
        task=spec.name,
        kind=spec.kind,
        rows=examples.split.num_rows,
        examples=examples.num_examples,
        tokens=int(examples.lengths.sum()),
        units={name: int(whole.units[term_id]) for term_id, name in names.items()},
        losses=losses,
        micro_batches=tuple(result.num_micro_batches for result in results),
        parameters=sum(gradient.numel() for gradient in whole.gradients.values()),
        metrics=metrics[spec.name],
    )


def _check_outputs(run: _Checked) -> None:
    """Losses of the task's rows are finite, and depend on what the model says of them."""
    outputs = run.model(run.whole)
    leaves = {form: of_form.detach().requires_grad_() for form, of_form in outputs.items()}
    sums = run.losses.sums(run.losses.of_batch(leaves, run.whole.targets))

    for term_id in run.terms:
        term, total = run.data.layout.terms[term_id], sums.total[term_id]
        where = f"the loss of {term.suffix}" if term.suffix else "the loss"
        if not run.whole.unit_counts[term_id]:
            raise ConfigError(f"check_task: no row has anything for {where} to learn; give rows that have")
        if not bool(total.isfinite()):
            raise ConfigError(f"check_task: {where} is {total.item()}; it must be a finite number")

        (gradient,) = torch.autograd.grad(total, leaves[term.form], retain_graph=True, allow_unused=True)
        if gradient is None or not bool(gradient.any()):
            raise ConfigError(
                f"check_task: {where} does not depend on the model's outputs (no gradient); "
                "is something detached from the graph?"
            )


def _check_cuts(run: _Checked, results: Sequence[CutResult]) -> None:
    """Every cut of the same examples gives one micro-batch's losses and gradients, to every parameter."""
    problems = _missing_gradients(results)
    whole, *cuts = results
    for cut in cuts:
        problems += _other_losses(run.terms, whole, cut)
        # Other losses have other gradients: said once.
        if not problems:
            problems += _other_gradients(whole, cut)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def _missing_gradients(results: Sequence[CutResult]) -> list[str]:
    missing = list(dict.fromkeys(name for result in results for name in result.without_gradient))
    if not missing:
        return []
    return [
        f"check_task: no gradient for {', '.join(missing[:4])} in some micro-batch; every parameter "
        "must take part in every forward"
    ]


def _other_losses(terms: Sequence[int], whole: CutResult, cut: CutResult) -> list[str]:
    problems = []
    for term_id in terms:
        one, many = whole.totals[term_id], cut.totals[term_id]
        if abs(many - one) > TOLERANCE * max(abs(one), 1e-3):
            problems.append(
                f"check_task: the losses of all rows sum up to {one:.6g} in one micro-batch and to "
                f"{many:.6g} "
                f"in {cut.num_micro_batches}; a row's loss must not depend on the rows beside it (does the "
                "loss divide by their number?)"
            )
    return problems


def _other_gradients(whole: CutResult, cut: CutResult) -> list[str]:
    largest = max(float(gradient.abs().max()) for gradient in whole.gradients.values())
    for name, gradient in whole.gradients.items():
        if float((cut.gradients[name] - gradient).abs().max()) > TOLERANCE * max(largest, 1e-6):
            return [
                f"check_task: the gradient of {name} differs between one micro-batch and "
                f"{cut.num_micro_batches}, although the losses are equal; a row's outputs must not depend on "
                "the rows beside it (batch normalisation?)"
            ]
    return []


def _check_half_precision(run: _Checked) -> None:
    """A run on GPUs computes in bf16: parameters and hidden states are, outputs and losses are float32."""
    half = copy.deepcopy(run.model).to(torch.bfloat16)
    try:
        with torch.no_grad():
            sums = run.losses.sums(run.losses.of_batch(half(run.whole), run.whole.targets))
    except RuntimeError as error:
        raise ConfigError(
            f"check_task: fails with a model in bf16, as runs on GPUs have it: {error}"
        ) from error

    if not bool(sums.total.isfinite().all()):
        raise ConfigError("check_task: with a model in bf16 the loss is not finite")


def _check_saved_weights(run: _Checked, folder: Path) -> None:
    """A model drawn from another seed gives the same outputs with the saved weights."""
    weights = {name: tensor.contiguous().clone() for name, tensor in run.model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)

    other_seed = run.recipe.train.model_copy(update={"seed": 1})
    other = run.recipe.model_copy(update={"train": other_seed})
    loaded = run_model(other, run.data, device=_CPU, compute_dtype=torch.float32)
    load_weights(loaded, read_weights(folder), folder)

    with torch.no_grad():
        before, after = run.model.eval()(run.whole), loaded.eval()(run.whole)
    different = [form for form in before if not torch.equal(before[form], after[form])]
    if different:
        raise ConfigError(
            f"check_task: saved and loaded weights give other outputs ({', '.join(different)}); "
            "everything that a head computes with must be a parameter or a persistent buffer"
        )
