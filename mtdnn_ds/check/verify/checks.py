"""What verify runs and compares: each promise as two runs whose losses and gradient norms must agree."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtdnn_ds.check.verify.certificate import Result
from mtdnn_ds.check.verify.jobs import Job, run_group
from mtdnn_ds.check.verify.worker import HIDDEN
from mtdnn_ds.config.recipe import Recipe

log = logging.getLogger(__name__)

ZERO_STAGES = (0, 1, 2, 3)
ELASTIC_STAGES = (2, 1, 3)  # in which a ZeRO 2 checkpoint goes on

# float32, a few steps: relative difference of losses and gradient norms (rounding gives 1e-7 to 1e-5),
# absolute of hidden states.
TOLERANCE = 1e-4
HIDDEN_TOLERANCE = 1e-5

# bf16 weights, or a DeepSpeed JSON of the user's own: 8 bits of mantissa.
HALF_TOLERANCE = 5e-2


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """`run` against `reference`, from step `first` on."""

    promise: str
    run: str
    reference: str
    at_most: float = TOLERANCE
    first: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class _Recipes:
    """The small recipe in the forms that are compared."""

    whole: Recipe  # a step is one micro-batch
    cut: Recipe  # a step is many
    saving: Recipe  # whole, with a checkpoint in the middle
    saving_cut: Recipe
    counter: Recipe  # cut, with dropout that does not depend on the cut
    middle: int  # step


def verify_recipe(
    recipe: Recipe,
    own_json: dict[str, Any] | None,
    folder: Path,
    *,
    max_ranks: int,
    budgets: tuple[int, int],
) -> list[Result]:
    """Measure every promise for a small recipe, with runs in `folder`.

    `own_json`: the user's DeepSpeed JSON. `budgets`: tokens of a micro-batch that hold a whole step, and that
    cut it up.
    """
    recipes = _recipes(recipe, budgets)
    jobs = _jobs_on_one_rank(recipes, folder, own_json)
    comparisons = _comparisons_on_one_rank(recipes, own_json)
    among_ranks = _comparisons_among_ranks(recipes, max_ranks)

    log.info(f"{len(jobs)} small runs of {recipe.train.steps} steps on one rank ...")
    failures = {"one": run_group(jobs, folder, 1)}
    if max_ranks == 1:
        why = "one device here: run it where there are more, or with --max_ranks"
        skipped = [
            Result(promise=each.promise, figure=None, at_most=TOLERANCE, why=why) for each in among_ranks
        ]
        return [*_results(folder, comparisons, failures), *skipped]

    jobs = _jobs_on_many_ranks(recipes, folder)
    log.info(f"{len(jobs)} on {max_ranks} ranks ...")
    failures["many"] = run_group(jobs, folder, max_ranks)

    log.info("and one on one rank again ...")
    failures["back"] = failures["many"] or run_group([_job_back_on_one_rank(recipes, folder)], folder, 1)
    return _results(folder, [*comparisons, *among_ranks], failures)


def _recipes(recipe: Recipe, budgets: tuple[int, int]) -> _Recipes:
    assert recipe.train.steps is not None
    middle = recipe.train.steps // 2
    whole, cut = (with_budget(recipe, tokens) for tokens in budgets)
    return _Recipes(
        whole=whole,
        cut=cut,
        saving=with_train(whole, save_every=middle),
        saving_cut=with_train(cut, save_every=middle),
        counter=with_train(cut, dropout="counter"),
        middle=middle,
    )


def _jobs_on_one_rank(recipes: _Recipes, folder: Path, own_json: dict[str, Any] | None) -> list[Job]:
    whole, saving = recipes.whole, recipes.saving
    resume = _checkpoint(folder, "saving", recipes.middle)
    jobs = [
        Job(name="hidden", recipe=whole, deepspeed=zero(0), kind="hidden"),
        Job(name="reference", recipe=whole, deepspeed=zero(0)),
        Job(name="padded", recipe=with_attention(whole, "padded"), deepspeed=zero(0)),
        *(Job(name=f"cut_zero{stage}", recipe=recipes.cut, deepspeed=zero(stage)) for stage in ZERO_STAGES),
        Job(name="saving", recipe=saving, deepspeed=zero(2)),
        Job(name="resumed", recipe=saving, deepspeed=zero(2), resume=resume),
        Job(name="counter", recipe=recipes.counter, deepspeed=zero(2)),
    ]
    if own_json is not None:
        jobs.append(Job(name="own", recipe=whole, deepspeed=own_json))
    return jobs


def _comparisons_on_one_rank(recipes: _Recipes, own_json: dict[str, Any] | None) -> list[Comparison]:
    comparisons = [
        Comparison(promise="packed = padded (loss, gradient norm)", run="padded", reference="reference"),
        Comparison(promise="one micro-batch = many", run="cut_zero0", reference="reference"),
    ]
    for stage in ZERO_STAGES[1:]:
        promise = f"ZeRO {stage} = ZeRO 0"
        comparisons.append(Comparison(promise=promise, run=f"cut_zero{stage}", reference="cut_zero0"))

    comparisons.append(_resumed(recipes.middle + 1, on_cuda=torch.cuda.is_available()))

    if own_json is not None:
        promise = "the given DeepSpeed JSON = float32 without ZeRO"
        comparisons.append(
            Comparison(promise=promise, run="own", reference="reference", at_most=HALF_TOLERANCE)
        )
    return comparisons


def _resumed(first: int, *, on_cuda: bool) -> Comparison:
    """These runs are in float32, in which attention's backward pass on CUDA adds in no fixed order."""
    promise, at_most = "resumed = uninterrupted, bit for bit", 0.0
    if on_cuda:
        promise, at_most = "resumed = uninterrupted (float32 attention on CUDA: to rounding)", TOLERANCE
    return Comparison(promise=promise, run="resumed", reference="saving", at_most=at_most, first=first)


def _jobs_on_many_ranks(recipes: _Recipes, folder: Path) -> list[Job]:
    resume = _checkpoint(folder, "saving", recipes.middle)
    return [
        *(
            Job(name=f"many_zero{stage}", recipe=recipes.saving_cut, deepspeed=zero(stage))
            for stage in ZERO_STAGES
        ),
        *(
            Job(name=f"elastic_zero{stage}", recipe=recipes.saving, deepspeed=zero(stage), resume=resume)
            for stage in ELASTIC_STAGES
        ),
        Job(name="counter_many", recipe=recipes.counter, deepspeed=zero(2)),
    ]


def _job_back_on_one_rank(recipes: _Recipes, folder: Path) -> Job:
    resume = _checkpoint(folder, "many_zero1", recipes.middle)
    return Job(name="back", recipe=recipes.saving_cut, deepspeed=zero(2), resume=resume)


def _comparisons_among_ranks(recipes: _Recipes, max_ranks: int) -> list[Comparison]:
    second_half = recipes.middle + 1
    comparisons = []
    for stage in ZERO_STAGES:
        promise = f"one rank = {max_ranks}, ZeRO {stage}"
        comparisons.append(Comparison(promise=promise, run=f"many_zero{stage}", reference="cut_zero0"))

    for stage in ELASTIC_STAGES:
        promise = f"1 -> {max_ranks} ranks, ZeRO 2 -> {stage}"
        run = f"elastic_zero{stage}"
        comparisons.append(Comparison(promise=promise, run=run, reference="saving", first=second_half))

    promise = f"{max_ranks} -> 1 ranks, ZeRO 1 -> 2"
    comparisons.append(Comparison(promise=promise, run="back", reference="many_zero1", first=second_half))
    promise = f"dropout=counter: one rank = {max_ranks}"
    comparisons.append(Comparison(promise=promise, run="counter_many", reference="counter"))
    return comparisons


def _checkpoint(folder: Path, run: str, step: int) -> str:
    return str(folder / run / "checkpoints" / f"step_{step}")


def zero(stage: int) -> dict[str, Any]:
    """A DeepSpeed JSON for exact comparisons."""
    return {"zero_optimization": {"stage": stage}}


def with_budget(recipe: Recipe, tokens: int) -> Recipe:
    batch = recipe.batch.model_copy(update={"max_tokens_per_micro_batch": tokens})
    return recipe.model_copy(update={"batch": batch})


def with_train(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})


def with_attention(recipe: Recipe, attention: str) -> Recipe:
    return recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update={"attention": attention})})


def difference(ours: Path, theirs: Path, first: int) -> float:
    """Largest relative difference of loss and gradient norm over the steps from `first` on.

    Raises ValueError if the steps differ.
    """
    a, b = _steps_from(ours, first), _steps_from(theirs, first)
    if a.keys() != b.keys() or not a:
        raise ValueError(f"steps {sorted(a)} against {sorted(b)}")
    if any(a[step]["task_examples"] != b[step]["task_examples"] for step in a):
        raise ValueError("the steps hold different examples")

    values = [(line[name], b[step][name]) for step, line in a.items() for name in ("loss", "grad_norm")]
    mine, other = np.array(values, dtype=np.float64).T
    return float(np.max(np.abs(mine - other) / np.maximum(np.abs(other), 1e-30)))


def _steps_from(run: Path, first: int) -> dict[int, dict[str, Any]]:
    """Training lines of a run's log by their steps."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "loss" in line and line["step"] >= first}


def _results(folder: Path, comparisons: Sequence[Comparison], failures: Mapping[str, str]) -> list[Result]:
    """What came out. `failures`: of each group of runs, what a failed one said."""
    said = "\n".join(text for text in dict.fromkeys(failures.values()) if text)
    results = [_hidden_states(folder, said)]

    # What the first missing run is told of is not said again of those after it.
    is_told = results[0].failed
    for each in comparisons:
        try:
            figure = difference(folder / each.run, folder / each.reference, each.first)
        except (OSError, ValueError) as error:
            is_missing = not (folder / each.run / "metrics.jsonl").is_file()
            if is_told and is_missing:
                why, failed = "its run was not reached", False
            else:
                why, failed = said or f"{each.run}: {error}", True
            result = Result(promise=each.promise, figure=None, at_most=each.at_most, why=why, failed=failed)
            is_told = is_told or bool(said)
        else:
            result = Result(promise=each.promise, figure=figure, at_most=each.at_most)
        results.append(result)
    return results


def _hidden_states(folder: Path, said: str) -> Result:
    promise = "packed = transformers' own forward, unpacked, float64 (hidden states)"
    try:
        figure = json.loads((folder / "hidden" / HIDDEN).read_text())["difference"]
    except OSError:
        return Result(promise=promise, figure=None, at_most=HIDDEN_TOLERANCE, why=said, failed=True)

    why = ""
    if figure is None:
        why = "sharing.mode is not hard: each copy is such an encoder"
    return Result(promise=promise, figure=figure, at_most=HIDDEN_TOLERANCE, why=why)
