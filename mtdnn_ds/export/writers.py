"""Writes the folders of one export and compares each with the run. Moves nothing to its place (run.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from mtdnn_ds.export.card import Card, sentence, with_capital, write_card
from mtdnn_ds.export.one_task import one_task_recipe, one_task_weights
from mtdnn_ds.export.opened import SourceRun
from mtdnn_ds.export.parity import (
    FolderReport,
    Parity,
    compared,
    load_plain,
    padded,
    plain_outputs,
    together,
)
from mtdnn_ds.export.plain import auto_class, plain_config, plain_model
from mtdnn_ds.export.samples import Sample, hidden_outputs, take_samples, with_outputs
from mtdnn_ds.model.hf_model import quiet_transformers
from mtdnn_ds.runs.model_folder import open_model, save_folder
from mtdnn_ds.tasks.kinds import PIPELINES
from mtdnn_ds.tasks.spec import TaskSpec

OURS = "MultiTaskModel"  # of mtdnn_ds, which opens folders of ours
Samples = Mapping[str, Sample]  # task -> its sample, with our outputs


def write_all(run: SourceRun, aside: Path, wanted: Sequence[str]) -> list[FolderReport]:
    """Write every folder named in `wanted` below `aside`.

    Raises CheckpointError if one does not give the run's outputs.
    """
    loaded = run.loaded
    plain_samples = take_samples(
        loaded.recipe, loaded.specs, loaded.layout, run.prepared, run.tokenizer, run.specials
    )
    samples = {}
    for task_id, (task, sample) in enumerate(plain_samples.items()):
        samples[task] = with_outputs(sample, loaded, task_id)

    reports = []
    for name in wanted:
        folder = aside / name
        folder.mkdir(parents=True)
        reports.append(_write(run, folder, name, samples))
    return reports


def _write(run: SourceRun, folder: Path, name: str, samples: Samples) -> FolderReport:
    """The folder `name`, as export/run.py names folders."""
    format, _, task = name.partition("/")
    if format == "encoder":
        return _encoder(run, folder, samples)
    if format == "multitask":
        return _multitask(run, folder, samples)
    if format == "tasks":
        return _task(run, folder, samples, next(spec for spec in run.loaded.specs if spec.name == task))

    if format.startswith("onnx"):
        from mtdnn_ds.export.onnx_graph import write_onnx

        return write_onnx(run, folder, samples, format.removeprefix("onnx").removeprefix("_") or None)

    from mtdnn_ds.export.sentences import write_sentence_transformers

    task = format.removeprefix("sentence-transformers").removeprefix("_")
    return write_sentence_transformers(run, folder, samples, task or None)


def save_plain(run: SourceRun, folder: Path, spec: TaskSpec | None) -> str | None:
    """Weights, config and tokenizer of the encoder (`spec` None) or a task as a plain folder.

    Where there is no such class: why, as the end of a sentence, and nothing is written.
    """
    loaded = run.loaded
    config = plain_config(run.config, spec, dropout=_dropout(run, spec))
    model = plain_model(spec, run.weights, loaded.model, loaded.layout, run.sharing, config)
    if isinstance(model, str):
        return model

    with quiet_transformers():
        model.save_pretrained(folder)
        run.tokenizer.save_pretrained(folder)
    return None


def _dropout(run: SourceRun, spec: TaskSpec | None) -> float | None:
    """Before the task's head in training; None: the encoder's own, which plain classes take by themselves."""
    if spec is None:
        return None
    return 0.0 if run.loaded.recipe.train.dropout == "none" else spec.dropout


def _encoder(run: SourceRun, folder: Path, samples: Samples) -> FolderReport:
    problem = save_plain(run, folder, None)
    assert problem is None, problem
    plain = load_plain(folder, auto_class(None))
    name = type(plain).__name__

    parity, note = _encoder_parity(run, folder, samples, plain)
    checked = "hidden states of all tokens, the folder loaded from disk by transformers on padded input"
    if parity is None:
        checked = f"Not compared: {note}. The encoders of the tasks are in their folders."
    notes = [note] if note else []
    if getattr(plain, "pooler", None) is None:
        notes.append(f"{name} has no pooler: that of the sequence heads is in their folders")
    note = "; ".join(notes)

    card = Card(
        title=f"{run.facts.run}: encoder",
        about=f"The encoder of a multi-task model as a plain {name}.{sentence(note)}",
        use="from transformers import AutoModel, AutoTokenizer\n\n"
        'model, tokenizer = AutoModel.from_pretrained("encoder"), AutoTokenizer.from_pretrained("encoder")',
        parity=parity,
        checked_with=checked,
        specs=(),
        pipeline="feature-extraction",
    )
    write_card(folder, run, card)
    return FolderReport(name="encoder", loads_with=name, parity=parity, note=note)


def _encoder_parity(
    run: SourceRun, folder: Path, samples: Samples, plain: torch.nn.Module
) -> tuple[Parity | None, str]:
    """The parity of the plain encoder's hidden states on the first task's sample; or none, and why."""
    if run.sharing.mode != "hard":
        shared = "the weights without the groups' changes"
        if run.sharing.mode == "soft":
            shared = "the mean of the copies"
        mode = run.sharing.mode
        return None, f"with {mode} sharing the encoder alone is {shared}, through which no task runs"

    sample = samples[run.loaded.specs[0].name]
    ours = np.concatenate(hidden_outputs(sample, run.loaded, 0))
    inputs = padded(folder, sample.sequences())
    with torch.no_grad():
        theirs = plain(**inputs).last_hidden_state[inputs["attention_mask"].bool()].numpy()
    return compared(ours, theirs, sample, folder.name), ""


def _task(run: SourceRun, folder: Path, samples: Samples, spec: TaskSpec) -> FolderReport:
    reason = save_plain(run, folder, spec)
    if reason is not None:
        return _own_task(run, folder, samples, spec, reason)

    auto = auto_class(spec)
    plain = load_plain(folder, auto)
    theirs = plain_outputs(plain, folder, spec, samples[spec.name])
    parity = compared(samples[spec.name].outputs[0], theirs, samples[spec.name], f"tasks/{spec.name}")
    name, note = type(plain).__name__, ""
    if spec.options.get("next_sentence"):
        note = "next sentences are answered by the folder of the whole model only"

    about = f"The task {spec.name} ({spec.kind}) of a multi-task model as a plain {name}."
    card = Card(
        title=f"{run.facts.run}: {spec.name}",
        about=f"{about} {_meaning(spec)}{sentence(note)}",
        use=f"from transformers import AutoTokenizer, {auto}\n\n"
        f'model, tokenizer = {auto}.from_pretrained("{spec.name}"), '
        f'AutoTokenizer.from_pretrained("{spec.name}")',
        parity=parity,
        checked_with="its logits, the folder loaded from disk by transformers on padded input",
        specs=(spec,),
        pipeline=PIPELINES[spec.kind],
    )
    write_card(folder, run, card)
    return FolderReport(name=f"tasks/{spec.name}", loads_with=name, parity=parity, note=note)


def _meaning(spec: TaskSpec) -> str:
    """What the logits of a plain model of the task say."""
    if spec.kind == "regression":
        return "Its one logit is the score."
    if spec.kind == "ranking":
        return (
            "Its one logit scores a candidate (the second text) for a query (the first): "
            "the higher, the better; only comparisons within a query mean something."
        )
    if spec.kind == "multiple_choice":
        return "Its logit scores a choice (the second text) for the first text."
    if spec.kind == "token_classification":
        return "The label of a word is that of its first token."
    if spec.labels:
        return f"Labels, in the order of the logits: {', '.join(spec.labels)}."
    return ""


def _own_task(run: SourceRun, folder: Path, samples: Samples, spec: TaskSpec, reason: str) -> FolderReport:
    """A task without a plain class: a folder of ours with this task alone."""
    loaded = run.loaded
    save_folder(
        folder,
        recipe=one_task_recipe(loaded.recipe, spec.name),
        specs=(spec,),
        weights=one_task_weights(run.weights, loaded.layout, run.sharing, spec.name),
        config=run.config,
        tokenizer=run.tokenizer,
        source=_source(run),
    )

    name, note = f"tasks/{spec.name}", f"no plain transformers class: {reason}"
    parity = _compared_with_folder(folder, {spec.name: samples[spec.name]}, name)
    about = f"The task {spec.name} ({spec.kind}) alone. {with_capital(note)}."
    write_card(folder, run, _own_card(folder, f"{run.facts.run}: {spec.name}", about, parity, [spec]))
    return FolderReport(name=name, loads_with=OURS, parity=parity, note=note)


def _multitask(run: SourceRun, folder: Path, samples: Samples) -> FolderReport:
    loaded = run.loaded
    save_folder(
        folder,
        recipe=loaded.recipe,
        specs=loaded.specs,
        weights=run.weights,
        config=run.config,
        tokenizer=run.tokenizer,
        source=_source(run),
    )

    parity = _compared_with_folder(folder, samples, "multitask")
    about = f"One model for {len(loaded.specs)} tasks: {', '.join(loaded.layout.task_names)}."
    write_card(folder, run, _own_card(folder, f"{run.facts.run}: all tasks", about, parity, loaded.specs))
    return FolderReport(name="multitask", loads_with=OURS, parity=parity)


def _own_card(folder: Path, title: str, about: str, parity: Parity, specs: Sequence[TaskSpec]) -> Card:
    """The card of a folder that mtdnn_ds opens."""
    trusts = ""
    if any(spec.custom is not None for spec in specs):
        trusts = ", trust_plugins=True"
    return Card(
        title=title,
        about=about,
        use="from mtdnn_ds.predict.model import MultiTaskModel\n\n"
        f'model = MultiTaskModel.from_pretrained("{folder.name}"{trusts})\n'
        f'answers = model.predict(texts, tasks=["{specs[0].name}"])  '
        "# texts: str, pairs of str, or dicts with the columns of its training rows",
        parity=parity,
        checked_with="outputs of every head, the folder opened from disk by mtdnn_ds",
        specs=specs,
        pipeline=PIPELINES.get(specs[0].kind) if len(specs) == 1 else None,
        library="mtdnn_ds",
    )


def _compared_with_folder(folder: Path, samples: Samples, what: str) -> Parity:
    """The folder, opened from disk by ourselves, on every task's sample."""
    theirs = open_model(str(folder), device=torch.device("cpu"), trust_plugins=True)
    found = []
    for task_id, spec in enumerate(theirs.specs):
        sample = samples[spec.name]
        again = with_outputs(sample, theirs, task_id)
        for our_term, their_term in zip(sample.outputs, again.outputs, strict=True):
            found.append(compared(our_term, their_term, sample, f"{what} ({spec.name})"))
    return together(found, [samples[spec.name] for spec in theirs.specs])


def _source(run: SourceRun) -> dict[str, object]:
    """Where a folder comes from, for its mtdnn_ds.json."""
    facts = run.facts
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
