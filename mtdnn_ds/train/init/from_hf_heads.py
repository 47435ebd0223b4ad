"""Heads of Hugging Face checkpoints that tasks begin with (recipe: `heads`), found and put in. No encoder.

The encoder is encoder.path's. A checkpoint's outputs are put into the order of the task's labels by the
names in its config's id2label. Classes that keep a dense layer of their own before the last one (RoBERTa,
ELECTRA, DeBERTa) bring it as the run's pooler, which all sequence tasks share: so only one set of such
weights can be brought.

Shape legend: C outputs of a task, D hidden.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtdnn_ds.config.encoder_path import resolve_encoder_path
from mtdnn_ds.config.errors import CheckpointError, ConfigError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.model.encoder import PackedEncoder
from mtdnn_ds.model.heads.linear_bank import in_scale
from mtdnn_ds.model.multitask import MultiTaskNet
from mtdnn_ds.runs.setup import recipe_sharing
from mtdnn_ds.tasks.kinds import KINDS, PLAIN_CLASSES
from mtdnn_ds.tasks.layout import terms_of_spec
from mtdnn_ds.tasks.spec import TaskSpec

# Prefixes of the last layer, of a dense layer before it, and of whatever else a head may have.
_LAST = ("classifier.out_proj.", "classifier.", "qa_outputs.")
_DENSE = ("classifier.dense.", "pooler.dense.", "pre_classifier.", "sequence_summary.summary.")
_REST = (
    "classifier.",
    "qa_outputs.",
    "pooler.",
    "sequence_summary.",
    "pre_classifier.",
    "logits_proj.",
    "score.",
)

# Their classification heads have gelu, whatever the config says.
_GELU_FAMILIES = ("electra", "convbert", "roformer")

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class HFHead:
    """A checkpoint's head, by its config: which of its outputs is each of the task's."""

    folder: Path
    config: dict[str, Any]
    order: tuple[int, ...]  # order[i]: its output that is our output i


def head_problems(recipe: Recipe, specs: Sequence[TaskSpec]) -> list[str]:
    """What is wrong with `heads`, from configs and the names of tensors alone."""
    problems: list[str] = []
    for spec, path in _wanted(recipe, specs):
        try:
            _tensor_names(find_head(spec, path), spec)
        except ConfigError as error:
            problems += error.problems
    return problems


def begin_with_heads(model: MultiTaskNet, specs: Sequence[TaskSpec], recipe: Recipe) -> list[str]:
    """Put the heads into `model`; returns a sentence for each.

    Raises ConfigError and CheckpointError where one does not fit.
    """
    own_encoder = Path(resolve_encoder_path(recipe.encoder.path)).resolve()
    sharing = recipe_sharing(recipe)
    notes = []
    poolers: dict[int, tuple[str, dict[str, Tensor]]] = {}
    for spec, path in _wanted(recipe, specs):
        head = find_head(spec, path)
        last, dense = _tensor_names(head, spec)
        tensors = _read(head.folder, [*last.values(), *dense.values()])
        _set_columns(model, spec, head, {kind: (name, tensors[name]) for kind, name in last.items()})

        note = f"tasks.{spec.name}: begins with the head of {path}"
        if dense:
            copy = sharing.copy_of(model.layout.task_names.index(spec.name))
            weights = {kind: tensors[name].float() for kind, name in dense.items()}
            _set_pooler(model, copy, weights, head, spec, poolers)
            note += ", whose dense layer becomes the pooler of every task's first tokens"
        if head.folder.resolve() != own_encoder:
            note += (
                f"; the encoder is {recipe.encoder.path}, "
                "so its answers are not that checkpoint's before training"
            )
        notes.append(note)
    return notes


def find_head(spec: TaskSpec, path: str) -> HFHead:
    """The head of the checkpoint `path` for a task. Raises ConfigError."""
    where = f"heads.{spec.name}={path}"
    takes_head = spec.kind in KINDS and KINDS[spec.kind].takes_plain_head
    if not takes_head or spec.head != "linear":
        raise ConfigError(f"{where}: transformers has no class for {_described(spec)}; remove it")

    try:
        folder = Path(resolve_encoder_path(path))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        classes = [str(name) for name in config.get("architectures") or ()]
    except ConfigError as error:
        problems = [problem.replace("encoder.path", f"heads.{spec.name}", 1) for problem in error.problems]
        raise ConfigError(problems) from None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        if not Path(path).expanduser().is_dir():
            raise ConfigError(
                f"{where}: is no folder; download it first, e.g. with: hf download {path} --local-dir FOLDER"
            ) from None
        raise ConfigError(
            f"{where}: its config.json cannot be read ({error}); save the checkpoint again"
        ) from None

    wanted = PLAIN_CLASSES[spec.kind]
    if not any(name.endswith(wanted) for name in classes):
        what = ", ".join(classes) or "no class at all"
        raise ConfigError(f"{where}: holds {what}, and {_described(spec)} begins with a model {wanted}")
    if not any((folder / name).is_file() for name in (_INDEX, _SINGLE)):
        raise ConfigError(
            f"{where}: has no {_SINGLE}; "
            "save the checkpoint again with save_pretrained(..., safe_serialization=True)"
        )
    return HFHead(folder=folder, config=config, order=_order(spec, config, where))


def _wanted(recipe: Recipe, specs: Sequence[TaskSpec]) -> list[tuple[TaskSpec, str]]:
    paths = recipe.heads or {}
    return [(spec, paths[spec.name]) for spec in specs if spec.name in paths]


def _described(spec: TaskSpec) -> str:
    if spec.head == "san":
        return f"a {spec.kind} with the head san"
    return f"a {spec.kind}"


def _order(spec: TaskSpec, config: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """Which of the checkpoint's outputs is each of ours.

    Names are compared without regard to capitals, and to blanks or dashes between words.
    """
    num_outputs = terms_of_spec(spec)[0][2]
    id2label = config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}
    theirs = {int(index): str(name) for index, name in id2label.items()}
    names = [theirs[index] for index in sorted(theirs)]

    if spec.kind not in ("classification", "token_classification"):
        if spec.kind in ("regression", "ranking") and len(names) != num_outputs:
            raise ConfigError(
                f"{where}: has {len(names)} outputs ({', '.join(names)}), "
                f"and {_described(spec)} has {num_outputs}"
            )
        return tuple(range(num_outputs))

    index_of = {_plain(name): index for index, name in enumerate(names)}
    if len(names) != len(spec.labels) or index_of.keys() != {_plain(label) for label in spec.labels}:
        hint = "rename the labels of one side"
        if "LABEL_0" in names:
            hint = "write the real names into id2label of its config.json, if these stand for them"
        raise ConfigError(
            f"{where}: its labels are {', '.join(names)}, "
            f"and those of the task are {', '.join(spec.labels)}; {hint}"
        )
    return tuple(index_of[_plain(label)] for label in spec.labels)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())


def _tensor_names(head: HFHead, spec: TaskSpec) -> tuple[dict[str, str], dict[str, str]]:
    """{weight, bias: name in the checkpoint} of its last layer, and of the dense layer before it: {} where it
    has none.
    """
    where = f"heads.{spec.name}={head.folder}"
    last: dict[str, str] = {}
    dense: dict[str, str] = {}
    other = []
    for name in _files(head.folder):
        kind = name.rsplit(".", 1)[-1]
        if kind in ("weight", "bias") and name in [start + kind for start in _LAST]:
            last[kind] = name
        elif kind in ("weight", "bias") and name in [start + kind for start in _DENSE]:
            dense[kind] = name
        elif name.startswith(_REST):
            other.append(name)

    if other:
        raise ConfigError(f"{where}: its head has {other[0]}, which ours has not; remove it from heads")
    whole = {"weight", "bias"}
    if last.keys() != whole or (dense and dense.keys() != whole):
        raise ConfigError(
            f"{where}: its head has no last layer that ours has (classifier or qa_outputs, with a bias); "
            "remove it from heads"
        )
    if dense and spec.kind in ("token_classification", "span"):
        raise ConfigError(
            f"{where}: its head has a dense layer before the last one, "
            f"which ours has not for {_described(spec)}; remove it"
        )
    return last, dense


def _files(folder: Path) -> dict[str, Path]:
    """{name of a tensor: file} of a checkpoint in safetensors. Raises ConfigError."""
    from safetensors import SafetensorError, safe_open

    try:
        if (folder / _INDEX).is_file():
            parts = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
            return {str(name): folder / Path(str(part)).name for name, part in parts.items()}
        with safe_open(folder / _SINGLE, "pt") as tensors:
            return dict.fromkeys(tensors.keys(), folder / _SINGLE)
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise ConfigError(
            f"{folder}: its weights cannot be read ({error}); save the checkpoint again"
        ) from None


def _read(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    files, read = _files(folder), {}
    for name in names:
        try:
            with safe_open(files[name], "pt") as tensors:
                read[name] = tensors.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{files[name]}: {name} cannot be read ({error}); save the checkpoint again"
            ) from error
    return read


def _check_shape(theirs: Tensor, ours: Tensor, place: str, spec: TaskSpec) -> None:
    if theirs.shape != ours.shape:
        raise CheckpointError(
            f"{place} is {tuple(theirs.shape)} there and {tuple(ours.shape)} here; "
            f"heads.{spec.name} needs an encoder of this width"
        )


def _set_columns(
    model: MultiTaskNet, spec: TaskSpec, head: HFHead, last: Mapping[str, tuple[str, Tensor]]
) -> None:
    """Put the checkpoint's last layer, {weight, bias: (its name there, tensor)}, into the task's columns of
    its bank.
    """
    task = model.layout.task_names.index(spec.name)
    term = model.layout.terms[model.layout.terms_of(task)[0]]
    columns = slice(term.columns.start, term.columns.stop)

    bank = model.heads[term.head].state_dict()
    for kind, (name, theirs) in last.items():
        _check_shape(theirs, bank[kind][columns], f"{head.folder}: {name}", spec)
        bank[kind][columns] = theirs[list(head.order)].float()
    scaled = in_scale(bank["weight"][columns], bank["bias"][columns], theirs=None, ours=spec.score_scale)
    bank["weight"][columns], bank["bias"][columns] = scaled
    model.heads[term.head].load_state_dict(bank)


def _set_pooler(
    model: MultiTaskNet,
    copy: int,
    weights: dict[str, Tensor],
    head: HFHead,
    spec: TaskSpec,
    poolers: dict[int, tuple[str, dict[str, Tensor]]],
) -> None:
    """Make the checkpoint's dense layer the pooler of the encoder, or the copy of it, that the task reads."""
    encoder = model.encoder
    if not isinstance(encoder, PackedEncoder):
        encoder = encoder.encoders[copy]

    where = f"heads.{spec.name}={head.folder}"
    activation = type(getattr(encoder.pooler, "activation", None))
    theirs = _activation(head.config)
    if activation is not type(theirs):
        raise ConfigError(
            f"{where}: has {type(theirs).__name__} after its dense layer, "
            f"and the run's pooler has {activation.__name__}; remove it"
        )

    if copy in poolers:
        other, other_weights = poolers[copy]
        if any(not torch.equal(other_weights[kind], tensor) for kind, tensor in weights.items()):
            raise ConfigError(
                f"{where}: has another dense layer than heads.{other}, and tasks share one pooler; "
                "keep one of the two"
            )
    poolers[copy] = (spec.name, weights)

    layer = encoder.pooler.dense
    assert isinstance(layer, nn.Linear)  # model/heads/pooler.py makes it so
    dense = layer.state_dict()
    for kind, tensor in weights.items():
        _check_shape(tensor, dense[kind], f"{head.folder}: its dense layer's {kind}", spec)
    layer.load_state_dict(weights)


def _activation(config: Mapping[str, Any]) -> Any:
    from transformers.activations import ACT2FN

    if config.get("model_type") in _GELU_FAMILIES:
        return ACT2FN["gelu"]
    if config.get("model_type") == "distilbert":
        return ACT2FN["relu"]
    return ACT2FN[str(config.get("pooler_hidden_act") or "tanh")]
