"""A trained model as it is opened for use: a run folder with a checkpoint, or an exported folder.

Trains nothing. An exported folder needs neither the run's data nor the encoder it began with:

    model.safetensors    every weight in float32, names as in MultiTaskNet
    mtdnn_ds.json        format, sha256 of the weights, recipe, tasks, plugin files, where it comes from
    config.json, tokenizer.json, ...    the encoder's config and its tokenizer, as transformers writes them
    plugins/*.py         files of task kinds of the user's own
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtdnn_ds import __version__
from mtdnn_ds.checkpoint.weights import WEIGHTS
from mtdnn_ds.config.errors import CheckpointError, ConfigError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.files import file_sha256
from mtdnn_ds.runs.folder import RunFolder
from mtdnn_ds.runs.load import LoadedRun, build_run, find_run, load_run
from mtdnn_ds.tasks.plugins import load_plugins
from mtdnn_ds.tasks.spec import CustomKind, TaskSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedConfig

ABOUT = "mtdnn_ds.json"
FORMAT = 1
PLUGINS = "plugins"
DEFAULT = "best/average"

_SPEC_FIELDS = ("name", "kind", "labels", "metrics", "dropout", "loss_scale", "head", "objective", "options")
_PATH_SETTINGS: dict[str, Any] = {
    "files": None,
    "dataset": None,
    "hub": None,
    "splits": None,
    "train_fraction": None,
    "sample_seed": None,
}


def default_checkpoint(path: str) -> str:
    """What --checkpoint is where it is not given: best/average, or latest in a run never evaluated."""
    if is_exported(path) or (RunFolder(Path(path)).best / "average" / WEIGHTS).is_file():
        return DEFAULT
    return "latest"


def is_exported(path: str) -> bool:
    """Whether `path` is an exported folder of a whole model."""
    return (Path(path) / ABOUT).is_file()


def open_model(
    path: str,
    checkpoint: str = DEFAULT,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    setting: str = "MODEL",
    trust_plugins: bool = False,
) -> LoadedRun:
    """The model in `path`, in evaluation mode; `dtype` None: in float32.

    An exported folder may hold Python files of the user's own kinds of tasks, which opening it runs: only
    with `trust_plugins`. Raises ConfigError and CheckpointError in the words of the command line.
    """
    if is_exported(path):
        if checkpoint not in (DEFAULT, "latest"):
            raise ConfigError(
                f"--checkpoint {checkpoint}: {path} is an exported folder, which holds one; "
                "leave it out, or give the run folder"
            )
        loaded = _open_exported(
            Path(path), device=device, dtype=dtype, setting=setting, trust_plugins=trust_plugins
        )
    else:
        _refuse_other_folders(Path(path), setting)
        found = find_run(path, checkpoint, run_setting=setting, needs_data=False)
        loaded = load_run(found, device=device, dtype=dtype)

    loaded.model.eval()
    return loaded


def save_folder(
    folder: Path,
    *,
    recipe: Recipe,
    specs: Sequence[TaskSpec],
    weights: Mapping[str, Tensor],
    config: PreTrainedConfig,
    tokenizer: Any,
    source: Mapping[str, Any],
) -> None:
    """Write the whole model to `folder`, which is there and empty.

    `weights` are MultiTaskNet's; `source`: plain facts on where it comes from.
    """
    from safetensors.torch import save_file

    in_float32 = {name: tensor.float().contiguous() for name, tensor in weights.items()}
    save_file(in_float32, folder / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    plugins = _copy_plugins(recipe, specs, folder)

    about = {
        "format": FORMAT,
        "mtdnn_ds": __version__,
        "sha256": file_sha256(folder / WEIGHTS),
        "source": dict(source),
        "tasks": [{name: getattr(spec, name) for name in _SPEC_FIELDS} for spec in specs],
        "plugins": plugins,
        "recipe": _portable(recipe, specs).model_dump(mode="json"),
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n")


def read_about(folder: Path) -> dict[str, Any]:
    """mtdnn_ds.json of an exported folder, checked. Raises CheckpointError."""
    path = folder / ABOUT
    try:
        about = json.loads(path.read_text())
        version = about["format"]
        missing = [key for key in ("sha256", "source", "tasks", "plugins", "recipe") if key not in about]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); export the run again") from error

    if version != FORMAT:
        raise CheckpointError(
            f"{path}: has format {version!r}, and this version of mtdnn_ds reads {FORMAT}; "
            "install the version that wrote it"
        )
    if missing:
        raise CheckpointError(f"{path}: says nothing of {', '.join(missing)}; export the run again")
    return dict(about)


def _open_exported(
    folder: Path, *, device: torch.device, dtype: torch.dtype | None, setting: str, trust_plugins: bool
) -> LoadedRun:
    about = read_about(folder)
    kinds = _own_kinds(folder, about["plugins"], setting, trust_plugins=trust_plugins)
    try:
        recipe = Recipe.model_validate(about["recipe"])
        specs = tuple(_spec(values, kinds) for values in about["tasks"])
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{folder / ABOUT}: does not describe a model ({error}); export the run again"
        ) from error

    encoder = recipe.encoder.model_copy(update={"path": str(folder)})
    plugins = [str(folder / name) for name in about["plugins"]]
    recipe = recipe.model_copy(update={"encoder": encoder, "plugins": plugins})
    _check_exported_weights(folder, about["sha256"])

    def read() -> dict[str, Tensor]:
        from safetensors.torch import load_file

        return dict(load_file(folder / WEIGHTS))

    return build_run(recipe, specs, read, folder, device=device, dtype=dtype)


def _check_exported_weights(folder: Path, expected: str) -> None:
    """Raises CheckpointError if the weights are not there, or not those that were exported."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing; export the run again")

    found = file_sha256(path)
    if found != expected:
        raise CheckpointError(
            f"{path}: is damaged (its sha256 is {found}, {ABOUT} says {expected}); export the run again"
        )


def _spec(values: Mapping[str, Any], kinds: Mapping[str, CustomKind]) -> TaskSpec:
    own = {name: values[name] for name in _SPEC_FIELDS}
    own |= {name: tuple(own[name]) for name in ("labels", "metrics")}
    return TaskSpec(**own, splits={}, custom=kinds.get(own["kind"]))


def _portable(recipe: Recipe, specs: Sequence[TaskSpec]) -> Recipe:
    """The recipe without what names files of the machine it ran on. The encoder is the folder's own.

    Columns that were found in the data stay known: prediction reads texts by their names.
    """
    defaults = {name: Recipe.model_fields[name].default for name in ("init", "heads", "distillation", "data")}
    encoder = recipe.encoder.model_copy(
        update={
            "path": ".",
            "tokenizer": None,
            "sha256": None,
            "random_init": True,
            "attention": "auto",
            "fused_layer_norm": False,
        }
    )

    found = {spec.name: list(next(iter(spec.splits.values())).text_columns) for spec in specs if spec.splits}
    tasks = {}
    for name, settings in recipe.tasks.items():
        columns = settings.text_columns or found.get(name) or None
        tasks[name] = settings.model_copy(update={**_PATH_SETTINGS, "text_columns": columns})
    return recipe.model_copy(update={**defaults, "encoder": encoder, "tasks": tasks, "plugins": []})


def _copy_plugins(recipe: Recipe, specs: Sequence[TaskSpec], folder: Path) -> dict[str, str]:
    """The plugin files below plugins/, if a task is of a user's own kind; {name in the folder: sha256}."""
    if not any(spec.custom is not None for spec in specs):
        return {}

    copied = {}
    (folder / PLUGINS).mkdir()
    for number, source in enumerate(dict.fromkeys(recipe.plugins), 1):
        path = Path(source).expanduser()
        target = folder / PLUGINS / path.name
        if target.exists():  # two files of one name
            target = target.with_name(f"{path.stem}_{number}.py")

        shutil.copyfile(path, target)
        copied[target.relative_to(folder).as_posix()] = file_sha256(target)
    return copied


def _own_kinds(
    folder: Path, plugins: Mapping[str, str], setting: str, *, trust_plugins: bool
) -> dict[str, CustomKind]:
    """The kinds of the folder's plugin files, if they are trusted and those that were exported."""
    if not plugins:
        return {}

    listed = ", ".join(str(folder / name) for name in plugins)
    if not trust_plugins:
        raise ConfigError(
            f"{setting} {folder}: holds task kinds of its maker's own, in Python files that opening it runs: "
            f"{listed}; read them, and give --trust_plugins (in Python trust_plugins=True) if you trust them"
        )

    wrong = [
        f"{folder / name}: is not the file that was exported (its sha256 differs from that in {ABOUT}); "
        "export the run again"
        for name, sha256 in plugins.items()
        if not (folder / name).is_file() or file_sha256(folder / name) != sha256
    ]
    if wrong:
        raise CheckpointError(wrong)
    return load_plugins([str(folder / name) for name in plugins])


def _refuse_other_folders(folder: Path, setting: str) -> None:
    """Folders that an export made beside the one of the whole model."""
    if is_exported(str(folder / "multitask")):
        raise ConfigError(
            f"{setting} {folder}: holds several exported folders; "
            f"give {folder / 'multitask'}, that of the whole model"
        )
    if (folder / "config.json").is_file() and not (folder / "recipe.yaml").is_file():
        raise ConfigError(
            f"{setting} {folder}: a plain transformers model, which transformers loads; "
            f"give a run folder, or a folder of the whole model ({ABOUT})"
        )
