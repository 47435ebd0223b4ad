"""Model cards: README.md of an exported folder, with the front matter that the Hugging Face hub reads. Texts only; measures nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtdnn_ds import __version__
from mtdnn_ds.config.encoder_path import HUB_NAME
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.config.yaml_text import dump_yaml
from mtdnn_ds.data.plan.rates import task_rates
from mtdnn_ds.export.opened import Facts, Opened
from mtdnn_ds.export.parity import Parity
from mtdnn_ds.tasks.builtin import BUILTIN_TASKS
from mtdnn_ds.tasks.spec import TaskSpec

PIPELINES: Mapping[str, str] = {
    "classification": "text-classification",
    "regression": "text-classification",
    "ranking": "text-ranking",
    "multiple_choice": "multiple-choice",
    "token_classification": "token-classification",
    "span": "question-answering",
    "conversational_span": "question-answering",
    "masked_lm": "fill-mask",
    "similarity": "sentence-similarity",
}
_HUB_METRICS = {
    "accuracy": "accuracy",
    "f1": "f1",
    "macro_f1": "f1",
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "entity_f1": "seqeval",
    "exact_match": "exact_match",
    "token_f1": "f1",
}


def write_card(
    folder: Path,
    opened: Opened,
    *,
    title: str,
    about: str,
    use: str,
    parity: Parity | None,
    checked_with: str,
    specs: Sequence[TaskSpec],
    pipeline: str | None,
    library: str = "transformers",
) -> None:
    """README.md of `folder`. `specs`: the tasks that the folder answers; `use`: Python that loads it; `parity` None: not compared, `checked_with` says why."""
    facts, recipe = opened.facts, opened.loaded.recipe
    parts = [
        f"---\n{dump_yaml(_front_matter(facts, opened.loaded.specs, specs, pipeline, library)).strip()}\n---",
        f"# {title}",
        about,
        f"```python\n{use}\n```",
        "## Checked",
        checked_with
        if parity is None
        else f"Largest difference of its outputs from those of the run it comes from: **{parity.difference:.1e}** in float32, over "
        f"{parity.rows} sequences ({parity.source}); {checked_with}.",
        "## Trained",
        _trained(facts, recipe, opened.loaded.specs),
        "## Data",
        _data(facts, recipe, opened.loaded.specs),
        "## Results",
        _results(facts),
        "## Versions",
        _versions(facts),
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _front_matter(
    facts: Facts, all_specs: Sequence[TaskSpec], specs: Sequence[TaskSpec], pipeline: str | None, library: str
) -> dict[str, Any]:
    """What is known; a licence never is, and a language only of tasks whose data we know."""
    is_hub = HUB_NAME.fullmatch(facts.encoder) is not None and not Path(facts.encoder).is_dir()
    english = all(spec.name in BUILTIN_TASKS for spec in all_specs)
    hub_data = [source.path for spec in all_specs for source in _sources(spec) if source.format == "hub"]
    metrics = [_HUB_METRICS[metric] for spec in specs for metric in spec.metrics if metric in _HUB_METRICS]
    values = {
        "language": ["en"] if english else None,
        "library_name": library,
        "pipeline_tag": pipeline,
        "base_model": facts.encoder if is_hub else None,
        "datasets": list(dict.fromkeys(hub_data)),
        "metrics": list(dict.fromkeys(metrics)),
        "tags": ["mtdnn_ds", "multi-task"],
    }
    return {key: value for key, value in values.items() if value}


def _sources(spec: TaskSpec) -> Iterable[Any]:
    """Where its rows come from; those of a built-in task under the name that the hub has for them, wherever the files lay."""
    return BUILTIN_TASKS[spec.name].remote.values() if spec.name in BUILTIN_TASKS else spec.splits.values()


def _trained(facts: Facts, recipe: Recipe, specs: Sequence[TaskSpec]) -> str:
    length = (
        f"{recipe.train.steps:,} steps"
        if recipe.train.steps is not None
        else f"{recipe.train.epochs:g} epochs"
    )
    step = "?" if facts.step is None else f"{facts.step:,}"
    rows = [
        ("run", f"{facts.run}, weights `{facts.checkpoint}` of step {step} (the run was set to {length})"),
        ("encoder", f"{facts.encoder}, sha256 of its weights {facts.encoder_sha256 or 'unknown'}"),
        ("tasks", ", ".join(f"{spec.name} ({spec.kind})" for spec in specs)),
        ("examples of a step", f"{recipe.batch.examples_per_step}, mixing {recipe.mixture.mixing}"),
        (
            "optimizer",
            f"{recipe.optimizer.name}, lr {recipe.optimizer.lr:g}, weight decay {recipe.optimizer.weight_decay:g}",
        ),
        ("schedule", f"{recipe.schedule.name}, warm-up {recipe.schedule.warmup:g}"),
        ("longest sequence", f"{recipe.encoder.max_length} tokens"),
        ("seed", str(facts.seed)),
        ("sharing", recipe.sharing.mode),
        ("fingerprint of the step plan", facts.plan_fingerprint or "unknown (the run has no checkpoint)"),
    ]
    return _table(("what", "value"), rows)


def _data(facts: Facts, recipe: Recipe, specs: Sequence[TaskSpec]) -> str:
    shares = _shares(facts, recipe, specs)
    rows = []
    for spec in specs:
        known = facts.rows.get(spec.name, {})
        source = next(iter(dict.fromkeys(_name_of(source) for source in _sources(spec))), "unknown")
        dev = sum(number for split, number in known.items() if split != "train")
        rows.append(
            (
                spec.name,
                source,
                _number(known.get("train")),
                _number(dev or None),
                shares.get(spec.name, "unknown"),
            )
        )
    settings = recipe.mixture.rates if isinstance(recipe.mixture.rates, str) else "given one by one"
    return f"Mixture: rates {settings}.\n\n" + _table(
        ("task", "source", "training rows", "dev rows", "share of the examples"), rows
    )


def _name_of(source: Any) -> str:
    """A source without the folders of the machine it lay on."""
    return (
        source.path + (f" ({source.config})" if source.config else "")
        if source.format == "hub"
        else Path(source.path).name
    )


def _shares(facts: Facts, recipe: Recipe, specs: Sequence[TaskSpec]) -> dict[str, str]:
    """Each task's share by the recipe's rates; empty where they depend on rows that are not known. Annealed rates: those of the start."""
    sizes = {spec.name: facts.rows.get(spec.name, {}).get("train", 0) for spec in specs}
    mixture = recipe.mixture
    if not all(sizes.values()):
        if not isinstance(mixture.rates, dict):
            return {}
        sizes = dict.fromkeys(sizes, 1)
    try:
        shares = task_rates(mixture.rates, sizes, temperature=mixture.temperature, cap=mixture.cap, alpha=1.0)
    except ConfigError:
        return {}
    return {name: f"{share:.1%}" for name, share in zip(sizes, shares.tolist(), strict=True)}


def _results(facts: Facts) -> str:
    if not facts.metrics:
        return "The run was not evaluated at this step."
    rows = [
        (task, metric, f"{value:.4f}")
        for task, values in facts.metrics.items()
        for metric, value in values.items()
    ]
    return f"On the dev rows, after step {facts.step}.\n\n" + _table(("task", "metric", "value"), rows)


def _versions(facts: Facts) -> str:
    of_run = facts.environment
    packages = (
        ", ".join(f"{name} {version}" for name, version in of_run.get("packages", {}).items()) or "unknown"
    )
    topology = ", ".join(f"{name} {value}" for name, value in of_run.get("topology", {}).items()) or "unknown"
    return (
        f"Trained with mtdnn_ds {of_run.get('mtdnn_ds', 'of an unknown version')} on Python {of_run.get('python', '?')} ({packages}); "
        f"topology: {topology}. Exported with mtdnn_ds {__version__}."
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"
