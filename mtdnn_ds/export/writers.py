"""Writes the folders of one export and compares each with the run. Chooses no names and moves nothing to its place (export/run.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mtdnn_ds.export.card import PIPELINES, write_card
from mtdnn_ds.export.one_task import one_task_recipe, one_task_weights
from mtdnn_ds.export.opened import Opened
from mtdnn_ds.export.parity import Parity, compared, load_plain, padded, plain_outputs
from mtdnn_ds.export.plain import CLASSES, ENCODER, plain_config, plain_model
from mtdnn_ds.export.samples import Sample, hidden_outputs, take_samples, with_outputs
from mtdnn_ds.model.hf_model import quiet_transformers
from mtdnn_ds.runs.model_folder import open_model, save_folder
from mtdnn_ds.tasks.spec import TaskSpec

OURS = "MultiTaskModel"  # of mtdnn_ds, which opens folders of ours


@dataclass(frozen=True, slots=True)
class Made:
    """One folder, still aside."""

    name: str
    loads_with: str
    parity: Parity | None
    note: str = ""


def write_all(opened: Opened, aside: Path, wanted: Sequence[str]) -> list[Made]:
    """Write every folder named in `wanted` below `aside`. Raises CheckpointError if one does not give the run's outputs."""
    loaded = opened.loaded
    samples = take_samples(
        loaded.recipe, loaded.specs, loaded.layout, opened.prepared, opened.tokenizer, opened.specials
    )
    samples = {
        name: with_outputs(sample, loaded, index) for index, (name, sample) in enumerate(samples.items())
    }
    made = []
    for name in wanted:
        folder = aside / name
        folder.mkdir(parents=True)
        kind, _, task = name.partition("/")
        if kind == "encoder":
            made.append(_encoder(opened, folder, samples))
        elif kind == "multitask":
            made.append(_multitask(opened, folder, samples))
        elif kind == "tasks":
            made.append(
                _task(opened, folder, samples, next(spec for spec in loaded.specs if spec.name == task))
            )
        elif kind.startswith("onnx"):
            from mtdnn_ds.export.onnx_graph import write_onnx

            own = kind.removeprefix("onnx_") if kind != "onnx" else None
            made.append(Made(name, "onnxruntime", *write_onnx(opened, folder, samples, own)))
        else:
            from mtdnn_ds.export.sentences import write_sentence_transformers

            own = kind.removeprefix("sentence-transformers_") if kind != "sentence-transformers" else None
            made.append(
                Made(name, "SentenceTransformer", *write_sentence_transformers(opened, folder, samples, own))
            )
    return made


def save_plain(opened: Opened, folder: Path, spec: TaskSpec | None) -> str | None:
    """Weights, config and tokenizer of the encoder (`spec` None) or a task as a plain folder; or why there is no such class."""
    loaded = opened.loaded
    config = plain_config(opened.config, spec, dropout=None if spec is None else _dropout(opened, spec))
    model = plain_model(spec, opened.weights, loaded.model, loaded.layout, opened.sharing, config)
    if isinstance(model, str):
        return model
    with quiet_transformers():
        model.save_pretrained(folder)
        opened.tokenizer.save_pretrained(folder)
    return None


def _dropout(opened: Opened, spec: TaskSpec) -> float | None:
    """Before the task's head in training; None: the encoder's own, which plain classes take by themselves."""
    return 0.0 if opened.loaded.recipe.train.dropout == "none" else spec.dropout


def _encoder(opened: Opened, folder: Path, samples: dict[str, Sample]) -> Made:
    problem = save_plain(opened, folder, None)
    assert problem is None, problem
    plain = load_plain(folder, ENCODER)
    note, parity, checked = encoder_check(opened, folder, samples, plain)
    if getattr(plain, "pooler", None) is None:
        note = (
            f"{note}; " * bool(note)
            + f"{type(plain).__name__} has no pooler: that of the sequence heads is in their folders"
        )
    write_card(
        folder,
        opened,
        title=f"{opened.facts.run}: encoder",
        about=f"The encoder of a multi-task model as a plain {type(plain).__name__}.{_sentence(note)}",
        use="from transformers import AutoModel, AutoTokenizer\n\n"
        'model, tokenizer = AutoModel.from_pretrained("encoder"), AutoTokenizer.from_pretrained("encoder")',
        parity=parity,
        checked_with=checked,
        specs=(),
        pipeline="feature-extraction",
    )
    return Made(name="encoder", loads_with=type(plain).__name__, parity=parity, note=note)


def encoder_check(
    opened: Opened, folder: Path, samples: dict[str, Sample], plain: torch.nn.Module
) -> tuple[str, Parity | None, str]:
    """A note, the parity of the plain encoder's hidden states on one task's sample, and how the card words the check."""
    if opened.sharing.mode != "hard":
        shared = (
            "the mean of the copies"
            if opened.sharing.mode == "soft"
            else "the weights without the groups' changes"
        )
        note = f"with {opened.sharing.mode} sharing the encoder alone is {shared}, through which no task runs"
        return note, None, f"Not compared: {note}. The encoders of the tasks are in their folders."
    task_id, spec = next(iter(enumerate(opened.loaded.specs)))
    sample = samples[spec.name]
    ours = np.concatenate(hidden_outputs(sample, opened.loaded, task_id))
    inputs = padded(folder, sample.sequences())
    with torch.no_grad():
        theirs = plain(**inputs).last_hidden_state[inputs["attention_mask"].bool()].numpy()
    checked = "hidden states of all tokens, the folder loaded from disk by transformers on padded input"
    return "", compared(ours, theirs, sample, folder.name), checked


def _task(opened: Opened, folder: Path, samples: dict[str, Sample], spec: TaskSpec) -> Made:
    reason = save_plain(opened, folder, spec)
    if reason is not None:
        return _own_task(opened, folder, samples, spec, reason)
    plain = load_plain(folder, CLASSES[spec.kind])
    sample, name = samples[spec.name], type(plain).__name__
    parity = compared(
        sample.outputs[0], plain_outputs(plain, folder, spec, sample), sample, f"tasks/{spec.name}"
    )
    note = (
        "next sentences are answered by the folder of the whole model only"
        if spec.options.get("next_sentence")
        else ""
    )
    write_card(
        folder,
        opened,
        title=f"{opened.facts.run}: {spec.name}",
        about=f"The task {spec.name} ({spec.kind}) of a multi-task model as a plain {name}. {_meaning(spec)}{_sentence(note)}",
        use=f"from transformers import AutoTokenizer, {CLASSES[spec.kind]}\n\n"
        f'model, tokenizer = {CLASSES[spec.kind]}.from_pretrained("{spec.name}"), AutoTokenizer.from_pretrained("{spec.name}")',
        parity=parity,
        checked_with="its logits, the folder loaded from disk by transformers on padded input",
        specs=(spec,),
        pipeline=PIPELINES[spec.kind],
    )
    return Made(name=f"tasks/{spec.name}", loads_with=name, parity=parity, note=note)


def _meaning(spec: TaskSpec) -> str:
    if spec.kind == "regression":
        return "Its one logit is the score."
    if spec.kind == "ranking":
        return "Its one logit scores a candidate (the second text) for a query (the first): the higher, the better; only comparisons within a query mean something."
    if spec.kind == "multiple_choice":
        return "Its logit scores a choice (the second text) for the first text."
    if spec.kind == "token_classification":
        return "The label of a word is that of its first token."
    if spec.labels:
        return f"Labels, in the order of the logits: {', '.join(spec.labels)}."
    return ""


def _own_task(opened: Opened, folder: Path, samples: dict[str, Sample], spec: TaskSpec, reason: str) -> Made:
    """A task without a plain class: a folder of ours with this task alone."""
    loaded = opened.loaded
    recipe, weights = (
        one_task_recipe(loaded.recipe, spec.name),
        one_task_weights(opened.weights, loaded.layout, opened.sharing, spec.name),
    )
    save_folder(
        folder,
        recipe=recipe,
        specs=(spec,),
        weights=weights,
        config=opened.config,
        tokenizer=opened.tokenizer,
        source=_source(opened),
    )
    parity = _compared_with_folder(folder, {spec.name: samples[spec.name]}, f"tasks/{spec.name}")
    note = f"no plain transformers class: {reason}"
    _own_card(
        opened,
        folder,
        f"{opened.facts.run}: {spec.name}",
        f"The task {spec.name} ({spec.kind}) alone. {_upper(note)}.",
        parity,
        [spec],
    )
    return Made(name=f"tasks/{spec.name}", loads_with=OURS, parity=parity, note=note)


def _multitask(opened: Opened, folder: Path, samples: dict[str, Sample]) -> Made:
    loaded = opened.loaded
    save_folder(
        folder,
        recipe=loaded.recipe,
        specs=loaded.specs,
        weights=opened.weights,
        config=opened.config,
        tokenizer=opened.tokenizer,
        source=_source(opened),
    )
    parity = _compared_with_folder(folder, samples, "multitask")
    about = f"One model for {len(loaded.specs)} tasks: {', '.join(loaded.layout.task_names)}."
    _own_card(opened, folder, f"{opened.facts.run}: all tasks", about, parity, list(loaded.specs))
    return Made(name="multitask", loads_with=OURS, parity=parity)


def _own_card(
    opened: Opened, folder: Path, title: str, about: str, parity: Parity, specs: list[TaskSpec]
) -> None:
    trusts = ", trust_plugins=True" if any(spec.custom is not None for spec in specs) else ""
    write_card(
        folder,
        opened,
        title=title,
        about=about,
        use=f'from mtdnn_ds.predict.model import MultiTaskModel\n\nmodel = MultiTaskModel.from_pretrained("{folder.name}"{trusts})\n'
        f'answers = model.predict(texts, tasks=["{specs[0].name}"])  # texts: str, pairs of str, or dicts with the columns of its training rows',
        parity=parity,
        checked_with="outputs of every head, the folder opened from disk by mtdnn_ds",
        specs=specs,
        pipeline=PIPELINES.get(specs[0].kind) if len(specs) == 1 else None,
        library="mtdnn_ds",
    )


def _compared_with_folder(folder: Path, samples: dict[str, Sample], what: str) -> Parity:
    """The folder, opened from disk by ourselves, on every task's sample."""
    theirs = open_model(str(folder), device=torch.device("cpu"), trust_plugins=True)
    found = []
    for task_id, spec in enumerate(theirs.specs):
        sample = samples[spec.name]
        pairs = zip(sample.outputs, with_outputs(sample, theirs, task_id).outputs, strict=True)
        found += [compared(ours, again, sample, f"{what} ({spec.name})") for ours, again in pairs]
    sources = list(dict.fromkeys(each.source for each in found))
    rows = sum(samples[spec.name].num_sequences for spec in theirs.specs)
    return Parity(
        difference=float(np.max([each.difference for each in found])), rows=rows, source=", ".join(sources)
    )


def _source(opened: Opened) -> dict[str, object]:
    facts = opened.facts
    return {
        "run": facts.run,
        "checkpoint": facts.checkpoint,
        "step": facts.step,
        "seed": facts.seed,
        "plan_fingerprint": facts.plan_fingerprint,
        "encoder": facts.encoder,
        "encoder_sha256": facts.encoder_sha256,
        "metrics": facts.metrics,
    }


def _sentence(note: str) -> str:
    return f" {_upper(note)}." if note else ""


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
