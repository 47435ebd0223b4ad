"""Model cards: README.md of an exported folder, as the Hugging Face hub reads it. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtdnn_ds import __version__
from mtdnn_ds.config.encoder_path import HUB_NAME
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.plan.rates import task_rates
from mtdnn_ds.export.opened import RunFacts, SourceRun
from mtdnn_ds.export.parity import Parity
from mtdnn_ds.tasks.builtin import BUILTIN_TASKS
from mtdnn_ds.tasks.spec import TaskSpec

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What a card says of its folder; what it says of the run is the same in all of them."""

    title: str
    about: str
    use: str  # Python that loads the folder
    parity: Parity | None  # None: not compared, `checked_with` says why
    checked_with: str
    specs: Sequence[TaskSpec]  # the tasks that the folder answers
    pipeline: str | None
    library: str = "transformers"


def write_card(folder: Path, run: SourceRun, card: Card) -> None:
    """README.md of `folder`."""
    facts, recipe, specs = run.facts, run.loaded.recipe, run.loaded.specs

    parts = [
        f"---\n{_front_matter(facts, specs, card)}\n---",
        f"# {card.title}",
        card.about,
        f"```python\n{card.use}\n```",
        "## Checked",
        _checked(card),
        "## Trained",
        _trained(facts, recipe, specs),
        "## Data",
        _data(facts, recipe, specs),
        "## Results",
        _results(facts),
        "## Versions",
        _versions(facts),
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def sentence(note: str) -> str:
    """The note as a further sentence of a paragraph; nothing of an empty one."""
    if not note:
        return ""
    return f" {with_capital(note)}."


def with_capital(text: str) -> str:
    """The text as a sentence begins."""
    return text[:1].upper() + text[1:]


def _front_matter(facts: RunFacts, all_specs: Sequence[TaskSpec], card: Card) -> str:
    """YAML of what is known; a licence never is, and a language only of tasks whose data we know."""
    from huggingface_hub import ModelCardData

    is_hub = HUB_NAME.fullmatch(facts.encoder) is not None and not Path(facts.encoder).is_dir()
    is_english = all(spec.name in BUILTIN_TASKS for spec in all_specs)
    datasets = [source.path for spec in all_specs for source in _sources(spec) if source.format == "hub"]
    names = [metric for spec in card.specs for metric in spec.metrics]
    metrics = [_HUB_METRICS[name] for name in names if name in _HUB_METRICS]
    data = ModelCardData(
        language=["en"] if is_english else None,
        library_name=card.library,
        pipeline_tag=card.pipeline,
        base_model=facts.encoder if is_hub else None,
        datasets=list(dict.fromkeys(datasets)) or None,
        metrics=list(dict.fromkeys(metrics)) or None,
        tags=["mtdnn_ds", "multi-task"],
    )
    return data.to_yaml()


def _sources(spec: TaskSpec) -> Iterable[Any]:
    """Where its rows come from; a built-in task's by their name on the hub, wherever the files lay."""
    if spec.name in BUILTIN_TASKS:
        return BUILTIN_TASKS[spec.name].remote.values()
    return spec.splits.values()


def _checked(card: Card) -> str:
    if card.parity is None:
        return card.checked_with
    return (
        f"Largest difference of its outputs from those of the run it comes from: "
        f"**{card.parity.difference:.1e}** in float32, over {card.parity.rows} sequences "
        f"({card.parity.source}); {card.checked_with}."
    )


def _trained(facts: RunFacts, recipe: Recipe, specs: Sequence[TaskSpec]) -> str:
    step = _number(facts.step, unknown="?")
    length = (
        f"{recipe.train.epochs:g} epochs" if recipe.train.steps is None else f"{recipe.train.steps:,} steps"
    )
    mixing: str = recipe.mixture.mixing
    if mixing == "per_step":
        mixing += f", order {recipe.mixture.order}"
    if recipe.mixture.only_task is not None:
        length += " of the whole mixture"
        mixing += f"; of it the part of {recipe.mixture.only_task} alone"

    optimizer = recipe.optimizer
    rows = [
        ("run", f"{facts.run}, weights `{facts.checkpoint}` of step {step} (the run was set to {length})"),
        ("encoder", f"{facts.encoder}, sha256 of its weights {facts.encoder_sha256 or 'unknown'}"),
        ("tasks", ", ".join(f"{spec.name} ({spec.kind})" for spec in specs)),
        ("examples of a step", f"{recipe.batch.examples_per_step}, mixing {mixing}"),
        ("optimizer", f"{optimizer.name}, lr {optimizer.lr:g}, weight decay {optimizer.weight_decay:g}"),
        ("schedule", f"{recipe.schedule.name}, warm-up {recipe.schedule.warmup:g}"),
        ("longest sequence", f"{recipe.encoder.max_length} tokens"),
        ("seed", str(facts.seed)),
        ("sharing", recipe.sharing.mode),
        ("fingerprint of the step plan", facts.plan_fingerprint or "unknown (the run has no checkpoint)"),
    ]
    return _table(("what", "value"), rows)


def _data(facts: RunFacts, recipe: Recipe, specs: Sequence[TaskSpec]) -> str:
    shares = _shares(facts, recipe, specs)
    rows = []
    for spec in specs:
        known = facts.rows.get(spec.name, {})
        num_dev = sum(number for split, number in known.items() if split != "train")
        names = [_name_of(source) for source in _sources(spec)] or ["unknown"]
        share = shares.get(spec.name, "unknown")
        rows.append((spec.name, names[0], _number(known.get("train")), _number(num_dev or None), share))

    rates = recipe.mixture.rates if isinstance(recipe.mixture.rates, str) else "given one by one"
    header = ("task", "source", "training rows", "dev rows", "share of the examples")
    return f"Mixture: rates {rates}.\n\n{_table(header, rows)}"


def _name_of(source: Any) -> str:
    """A source without the folders of the machine it lay on."""
    if source.format != "hub":
        return Path(source.path).name
    if source.config:
        return f"{source.path} ({source.config})"
    return str(source.path)


def _shares(facts: RunFacts, recipe: Recipe, specs: Sequence[TaskSpec]) -> dict[str, str]:
    """Each task's share by the recipe's rates; empty where they depend on rows that are not known.

    Of annealed rates those of the start.
    """
    mixture = recipe.mixture
    if mixture.only_task is not None:
        return {spec.name: "100.0%" if spec.name == mixture.only_task else "none" for spec in specs}

    sizes = {spec.name: facts.rows.get(spec.name, {}).get("train", 0) for spec in specs}
    if not all(sizes.values()):
        if not isinstance(mixture.rates, dict):
            return {}
        sizes = dict.fromkeys(sizes, 1)

    try:
        shares = task_rates(mixture.rates, sizes, temperature=mixture.temperature, cap=mixture.cap, alpha=1.0)
    except ConfigError:
        return {}
    return {name: f"{share:.1%}" for name, share in zip(sizes, shares.tolist(), strict=True)}


def _results(facts: RunFacts) -> str:
    if not facts.metrics:
        return "The run was not evaluated at this step."

    rows = [
        (task, metric, f"{value:.4f}")
        for task, values in facts.metrics.items()
        for metric, value in values.items()
    ]
    return f"On the dev rows, after step {facts.step}.\n\n" + _table(("task", "metric", "value"), rows)


def _versions(facts: RunFacts) -> str:
    of_run = facts.environment
    version, python = of_run.get("mtdnn_ds", "of an unknown version"), of_run.get("python", "?")
    packages = _listed(of_run.get("packages", {})) or "unknown"
    topology = _listed(of_run.get("topology", {})) or "unknown"
    return (
        f"Trained with mtdnn_ds {version} on Python {python} ({packages}); "
        f"topology: {topology}. Exported with mtdnn_ds {__version__}."
    )


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = []
    for cells in (header, ["---"] * len(header), *rows):
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _number(value: int | None, unknown: str = "unknown") -> str:
    return unknown if value is None else f"{value:,}"
