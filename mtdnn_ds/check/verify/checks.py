"""What verify runs and compares: each promise as two runs whose losses and gradient norms must agree."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtdnn_ds.check.verify.certificate import Result
from mtdnn_ds.check.verify.jobs import Job, run_group
from mtdnn_ds.check.verify.worker import HIDDEN
from mtdnn_ds.config.recipe import Recipe

STAGES = (0, 1, 2, 3)
# float32, a few steps: relative difference of losses and gradient norms (rounding gives 1e-7 to 1e-5), absolute of hidden states.
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


def verify_recipe(
    recipe: Recipe,
    own_json: dict[str, Any] | None,
    folder: Path,
    *,
    max_ranks: int,
    budgets: tuple[int, int],
    say: Callable[[str], None],
) -> list[Result]:
    """Measure every promise for a small recipe. `budgets`: tokens of a micro-batch that hold a whole step, and that cut it up."""
    assert recipe.train.steps is not None
    half = recipe.train.steps // 2
    whole, cut = (with_budget(recipe, tokens) for tokens in budgets)
    counter = with_train(cut, dropout="counter")
    saving = with_train(whole, save_every=half)
    one = [
        Job(name="hidden", recipe=whole, deepspeed=zero(0), kind="hidden"),
        Job(name="reference", recipe=whole, deepspeed=zero(0)),
        Job(name="padded", recipe=with_attention(whole, "padded"), deepspeed=zero(0)),
        *(Job(name=f"cut_zero{stage}", recipe=cut, deepspeed=zero(stage)) for stage in STAGES),
        Job(name="saving", recipe=saving, deepspeed=zero(2)),
        Job(
            name="resumed",
            recipe=saving,
            deepspeed=zero(2),
            resume=str(folder / "saving" / "checkpoints" / f"step_{half}"),
        ),
        Job(name="counter", recipe=counter, deepspeed=zero(2)),
        *([] if own_json is None else [Job(name="own", recipe=whole, deepspeed=own_json)]),
    ]
    comparisons = [
        Comparison(promise="packed = padded (loss, gradient norm)", run="padded", reference="reference"),
        Comparison(promise="one micro-batch = many", run="cut_zero0", reference="reference"),
        *(
            Comparison(promise=f"ZeRO {stage} = ZeRO 0", run=f"cut_zero{stage}", reference="cut_zero0")
            for stage in STAGES[1:]
        ),
        Comparison(
            promise="resumed = uninterrupted, bit for bit",
            run="resumed",
            reference="saving",
            at_most=0.0,
            first=half + 1,
        ),
    ]
    if own_json is not None:
        comparisons.append(
            Comparison(
                promise="the given DeepSpeed JSON = float32 without ZeRO",
                run="own",
                reference="reference",
                at_most=HALF_TOLERANCE,
            )
        )
    say(f"{len(one)} small runs of {recipe.train.steps} steps on one rank ...")
    failures = {"": run_group(one, folder, 1)}
    many_promises = [f"one rank = {max_ranks}, ZeRO {stage}" for stage in STAGES]
    elastic_promises = [f"1 -> {max_ranks} ranks, ZeRO 2 -> {stage}" for stage in (2, 1, 3)]
    back_promise, counter_promise = (
        f"{max_ranks} -> 1 ranks, ZeRO 1 -> 2",
        f"dropout=counter: one rank = {max_ranks}",
    )
    if max_ranks == 1:
        why = "one device here: run it where there are more, or with --max_ranks"
        skipped = [*many_promises, *elastic_promises, back_promise, counter_promise]
        return [
            *_results(folder, comparisons, failures),
            *(Result(promise=text, figure=None, at_most=TOLERANCE, why=why) for text in skipped),
        ]
    middle = str(folder / "saving" / "checkpoints" / f"step_{half}")
    many = [
        *(
            Job(name=f"many_zero{stage}", recipe=with_train(cut, save_every=half), deepspeed=zero(stage))
            for stage in STAGES
        ),
        *(
            Job(name=f"elastic_zero{stage}", recipe=saving, deepspeed=zero(stage), resume=middle)
            for stage in (2, 1, 3)
        ),
        Job(name="counter_many", recipe=counter, deepspeed=zero(2)),
    ]
    comparisons += [
        *(
            Comparison(promise=text, run=f"many_zero{stage}", reference="cut_zero0")
            for stage, text in zip(STAGES, many_promises, strict=True)
        ),
        *(
            Comparison(promise=text, run=f"elastic_zero{stage}", reference="saving", first=half + 1)
            for stage, text in zip((2, 1, 3), elastic_promises, strict=True)
        ),
        Comparison(promise=back_promise, run="back", reference="many_zero1", first=half + 1),
        Comparison(promise=counter_promise, run="counter_many", reference="counter"),
    ]
    say(f"{len(many)} on {max_ranks} ranks ...")
    failures["many"] = run_group(many, folder, max_ranks)
    back = Job(
        name="back",
        recipe=with_train(cut, save_every=half),
        deepspeed=zero(2),
        resume=str(folder / "many_zero1" / "checkpoints" / f"step_{half}"),
    )
    say("and one on one rank again ...")
    failures["back"] = run_group([back], folder, 1) if not failures["many"] else failures["many"]
    return _results(folder, comparisons, failures)


def zero(stage: int) -> dict[str, Any]:
    """A DeepSpeed JSON for exact comparisons."""
    return {"zero_optimization": {"stage": stage}}


def with_budget(recipe: Recipe, tokens: int) -> Recipe:
    return recipe.model_copy(
        update={"batch": recipe.batch.model_copy(update={"max_tokens_per_micro_batch": tokens})}
    )


def with_train(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})


def with_attention(recipe: Recipe, attention: str) -> Recipe:
    return recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update={"attention": attention})})


def difference(ours: Path, theirs: Path, first: int) -> float:
    """Largest relative difference of loss and gradient norm over the steps from `first` on. Raises ValueError if the steps differ."""
    a, b = (
        {line["step"]: line for line in _training_lines(folder) if line["step"] >= first}
        for folder in (ours, theirs)
    )
    if a.keys() != b.keys() or not a:
        raise ValueError(f"steps {sorted(a)} against {sorted(b)}")
    if any(a[step]["task_examples"] != b[step]["task_examples"] for step in a):
        raise ValueError("the steps hold different examples")
    values = [(line[name], b[step][name]) for step, line in a.items() for name in ("loss", "grad_norm")]
    mine, other = np.array(values, dtype=np.float64).T
    return float(np.max(np.abs(mine - other) / np.maximum(np.abs(other), 1e-30)))


def _training_lines(run: Path) -> list[dict[str, Any]]:
    return [
        line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in line
    ]


def _results(folder: Path, comparisons: Sequence[Comparison], failures: dict[str, str]) -> list[Result]:
    said = "\n".join(text for text in dict.fromkeys(failures.values()) if text)
    results = [_hidden(folder, said)]
    failed = results[0].failed  # what the first missing run is told of is not said again of those after it
    for each in comparisons:
        try:
            figure = difference(folder / each.run, folder / each.reference, each.first)
        except (OSError, ValueError) as error:
            missing = not (folder / each.run / "metrics.jsonl").is_file() and failed
            why = "its run was not reached" if missing else said or f"{each.run}: {error}"
            results.append(
                Result(promise=each.promise, figure=None, at_most=each.at_most, why=why, failed=not missing)
            )
            failed = failed or bool(said)
            continue
        results.append(Result(promise=each.promise, figure=figure, at_most=each.at_most))
    return results


def _hidden(folder: Path, said: str) -> Result:
    promise = "packed = transformers' own forward, unpacked, float64 (hidden states)"
    try:
        figure = json.loads((folder / "hidden" / HIDDEN).read_text())["difference"]
    except OSError:
        return Result(promise=promise, figure=None, at_most=HIDDEN_TOLERANCE, why=said, failed=True)
    why = "" if figure is not None else "sharing.mode is not hard: each copy is such an encoder"
    return Result(promise=promise, figure=figure, at_most=HIDDEN_TOLERANCE, why=why)
