"""What can be found wrong with a recipe's init, heads and train.freeze before any work. Reads no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mtdnn_ds.config.encoder_path import resolve_encoder_path
from mtdnn_ds.config.errors import ConfigError, did_you_mean
from mtdnn_ds.config.freeze import freeze_problems, layers_of
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.model.hf_config import encoder_config
from mtdnn_ds.runs.folder import RunFolder, refuse_staged_folder
from mtdnn_ds.runs.load import checkpoint_folders
from mtdnn_ds.tasks.layout import head_layout, terms_of_spec
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.tasks.spec import TaskSpec

# What weights and the meaning of their rows depend on; everything else is found when they are read.
_COMPARED = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "type_vocab_size",
)


def preflight(recipe: Recipe, specs: Sequence[TaskSpec], *, goes_on: bool) -> None:
    """Raise ConfigError with everything wrong with `train.freeze`, `init` and `heads`.

    Of the last two nothing is wanted if the run goes on from a checkpoint of its own.
    """
    problems: list[str] = []
    freeze = recipe.train.freeze
    if freeze:
        num_layers = None
        if any(layers_of(part) for part in freeze):
            num_layers = getattr(encoder_config(recipe.encoder), "num_hidden_layers", None)
        problems += freeze_problems(freeze, num_layers=num_layers, heads=head_layout(specs).heads)

    if recipe.init.run is not None and not goes_on:
        problems += _init_problems(recipe, specs, recipe.init.run)
    if recipe.heads and not goes_on:
        from mtdnn_ds.train.init.from_hf_heads import head_problems  # with torch

        problems += head_problems(recipe, specs)

    if problems:
        raise ConfigError(problems)


def encoder_differences(ours: Recipe, theirs: Recipe) -> list[str]:
    """Why weights of `theirs` cannot be those of `ours`: one line for each setting of the encoder, with both
    values.
    """
    if (ours.encoder.path, ours.encoder.tokenizer) == (theirs.encoder.path, theirs.encoder.tokenizer):
        return []

    try:
        our_config, their_config = encoder_config(ours.encoder), encoder_config(theirs.encoder)
    except ConfigError:
        return []  # its folder is gone; weights that do not fit are refused when they are read

    pairs = [(name, getattr(our_config, name, None), getattr(their_config, name, None)) for name in _COMPARED]
    lines = [f"{name} is {there} there and {here} here" for name, here, there in pairs if here != there]
    return lines or _vocabulary_difference(ours, theirs)


def _vocabulary_difference(ours: Recipe, theirs: Recipe) -> list[str]:
    from mtdnn_ds.data.cache.tokenize import load_tokenizer

    paths = [recipe.encoder.tokenizer or recipe.encoder.path for recipe in (theirs, ours)]
    there, here = (load_tokenizer(resolve_encoder_path(path)).get_vocab() for path in paths)
    if there == here:
        return []
    return [f"the vocabulary is that of {paths[0]} there and that of {paths[1]} here"]


def _init_problems(recipe: Recipe, specs: Sequence[TaskSpec], run: str) -> list[str]:
    folder = RunFolder(Path(run))
    if not folder.recipe.is_file():
        return [
            f"init.run={run}: not a run folder (recipe.yaml is missing); "
            "give the --output_dir of a training run"
        ]
    try:
        refuse_staged_folder(folder, "init.run")
    except ConfigError as error:
        return list(error.problems)

    try:
        theirs = load_recipe(str(folder.recipe), {})
        their_specs: Sequence[TaskSpec] = ()
        if recipe.init.heads == "matching":
            their_specs = resolve_tasks(theirs)
    except ConfigError as error:
        hint = ""
        if recipe.init.heads != "none":
            hint = "; mend that recipe, or set init.heads to none"
        return [f"init.run={run}: {problem}{hint}" for problem in error.problems]

    known, wanted = checkpoint_folders(folder), recipe.init.checkpoint
    if wanted != "latest" and wanted not in known:
        return [f"init.checkpoint={wanted}: not in {run}{did_you_mean(wanted, [*known, 'latest'])}"]
    if not known:
        return [f"init.run={run}: it has no checkpoint yet; let it train first"]

    problems = _head_problems(recipe.init.head_of or {}, specs, their_specs, run)
    hint = f"start from a run with this encoder, or set encoder.path to {theirs.encoder.path}"
    return problems + [f"init.run={run}: {line}; {hint}" for line in encoder_differences(recipe, theirs)]


def _head_problems(
    head_of: Mapping[str, str], specs: Sequence[TaskSpec], their_specs: Sequence[TaskSpec], run: str
) -> list[str]:
    ours, theirs = ({spec.name: spec for spec in known} for known in (specs, their_specs))
    problems = []
    for name, other in head_of.items():
        setting = f"init.head_of.{name}"
        if name not in ours:
            problems.append(f"{setting}: there is no task '{name}' in the run{did_you_mean(name, ours)}")
        elif other not in theirs:
            problems.append(f"{setting}={other}: {run} has no task '{other}'{did_you_mean(other, theirs)}")
        elif not _same_head(ours[name], theirs[other]):
            here, there = ((spec.kind, spec.head, list(spec.labels)) for spec in (ours[name], theirs[other]))
            problems.append(
                f"{setting}={other}: kind, head and labels must be equal, "
                f"and are {there} there and {here} here"
            )
    return problems


def _same_head(ours: TaskSpec, theirs: TaskSpec) -> bool:
    return terms_of_spec(ours) == terms_of_spec(theirs) and ours.labels == theirs.labels
