"""mt-dnn's task definitions (github.com/namisan/mt-dnn, experiments/*/*_task_def.yml) in our terms, key by key. Opens no data file.

What a definition says is either carried into a task's settings or named in a Finding: the key, its value, why not, and what we do instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mtdnn_ds.config.errors import ConfigError, did_you_mean
from mtdnn_ds.mt_dnn.key_checks import type_problems
from mtdnn_ds.mt_dnn.splits import our_splits
from mtdnn_ds.tasks.builtin import BUILTIN_TASKS
from mtdnn_ds.tasks.metrics import METRICS, metric_misfit

Form = Literal["texts", "candidates", "words", "span", "cloze", "documents"]
"""How a line of its canonical file is made up (mt_dnn/data_files.py)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something of a definition that is not carried over as it stands."""

    key: str  # TASK.KEY
    value: object
    why: str
    instead: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}: {self.why}; {self.instead}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedTask:
    """One task: the settings of ours that follow from its definition, and what its files are to be read with."""

    name: str  # ours
    theirs: str  # the name in the definition, with which file names begin
    settings: dict[str, Any]
    form: Form
    num_texts: int  # of form texts
    labels: tuple[str, ...]  # theirs, in class-id order
    splits: Mapping[str, tuple[str, ...]]  # our split -> theirs; only train may have several


# task_type -> (our kind, the loss that our kind has, in their name)
_TYPES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "Classification": ("classification", ("CeCriterion",)),
    "Regression": ("regression", ("MseCriterion", "RegCriterion")),
    "Ranking": ("ranking", ("RankCeCriterion",)),
    "ClozeChoice": ("ranking", ("RankCeCriterion",)),
    "Span": ("span", ("SpanCeCriterion",)),
    "SpanYN": ("span", ("SpanCeCriterion",)),
    "SeqenceLabeling": ("token_classification", ("SeqCeCriterion", "CeCriterion")),
    "SequenceLabeling": ("token_classification", ("SeqCeCriterion", "CeCriterion")),
    "MaskLM": ("masked_lm", ("MlmCriterion",)),
}
_NO_TYPES = {
    "SeqenceGeneration": "ours has encoders, which generate no text; the same task as a Classification or Regression can be imported",
    "SpanSeqenceLabeling": "ours has no kind with spans and tags in one head; write it as two tasks, a Span and a SeqenceLabeling",
}
# data_format -> (form, texts of a line)
_FORMATS: Mapping[str, tuple[Form, int]] = {
    "PremiseOnly": ("texts", 1),
    "PremiseAndOneHypothesis": ("texts", 2),
    "PremiseAndMultiHypothesis": ("candidates", 0),
    "Seqence": ("words", 0),
    "Sequence": ("words", 0),
    "CLUE_SEQ": ("words", 0),
    "MRC": ("span", 0),
    "CLUE_SPAN": ("span", 0),
    "ClozeChoice": ("cloze", 0),
    "MLM": ("documents", 0),
}
_NO_FORMATS = ("CLUE_CLASSIFICATION", "CLUE_GEN")
_FORMS_OF_KIND: Mapping[str, tuple[Form, ...]] = {
    "classification": ("texts",),
    "regression": ("texts",),
    "ranking": ("candidates", "cloze"),
    "span": ("span", "texts"),  # SQuAD's canonical lines are a pair whose label holds the answer
    "token_classification": ("words",),
    "masked_lm": ("documents",),
}
_METRICS: Mapping[str, tuple[str, ...]] = {
    "ACC": ("accuracy", "masked_accuracy"),
    "F1": ("f1",),
    "MCC": ("matthews",),
    "Pearson": ("pearson",),
    "Spearman": ("spearman",),
    "F1MAC": ("macro_f1",),
    "F1MIC": ("accuracy",),
    "SeqEval": ("entity_f1",),
    "SeqEvalList": ("entity_f1",),
    "NERACC": ("entity_f1",),
    "EmF1": ("exact_match", "token_f1"),
    "EmF12": ("exact_match", "token_f1"),
}
_NO_METRICS = {
    "AUC": "ours has no area under the curve",
    "CMAT": "ours has no confusion matrix among its metrics",
}
_MARKS = ("X", "CLS", "SEP")
_ENCODERS = {
    "BERT": "google-bert/bert-base-uncased",
    "ROBERTA": "FacebookAI/roberta-base",
    "DEBERTA": "microsoft/deberta-base",
    "ELECTRA": "google/electra-base-discriminator",
}
_NO_ENCODERS = ("XLNET", "SAN", "XLM", "T5", "T5G")
KEYS = (
    "data_format", "encoder_type", "dropout_p", "enable_san", "labels", "metric_meta", "loss", "kd_loss", "adv_loss", "n_class",
    "split_names", "task_type", "max_seq_len",
)  # fmt: skip
"""Every key that mt-dnn's experiments/exp_def.py reads, now or in an earlier version, and max_seq_len, a flag of its prepro_std.py."""
_FLAGS = {
    "batch_size": "batch.examples_per_step", "learning_rate": "optimizer.lr", "epochs": "train.epochs", "max_seq_length": "encoder.max_length",
    "optimizer": "optimizer.name", "weight_decay": "optimizer.weight_decay", "warmup": "schedule.warmup", "seed": "train.seed",
}  # fmt: skip


def translate(definitions: object, source: str) -> tuple[list[ImportedTask], list[Finding]]:
    """The tasks of a definition file that ours has a kind for, and everything that is not carried over. Raises ConfigError."""
    if not isinstance(definitions, dict) or not definitions:
        raise ConfigError(f"{source}: a task definition is a mapping of task names to their keys")
    problems: list[str] = []
    findings: list[Finding] = []
    tasks = []
    for name, keys in definitions.items():
        if not isinstance(keys, dict):
            problems.append(
                f"{source}: {name}: a task is a mapping of keys (data_format, task_type, ...), not {keys!r}"
            )
            continue
        keys = {str(key): value for key, value in keys.items() if value is not None}
        if wrong := type_problems(f"{source}: {name}", keys):
            problems += wrong
            continue
        task = _task(str(name), keys, source, findings, problems)
        tasks += [] if task is None else [task]
    if problems:
        raise ConfigError(problems)
    names = [task.name for task in tasks]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"{source}: two tasks would be called {', '.join(repeated)} here; rename one of them"
        )
    return tasks, findings


def encoder_of(definitions: Mapping[str, Any], findings: list[Finding]) -> str:
    """The hub name of the encoder that the definitions are for: BERT's, where they do not say."""
    named = {
        str(keys["encoder_type"]): name
        for name, keys in definitions.items()
        if isinstance(keys, dict) and "encoder_type" in keys
    }
    for encoder_type, name in named.items():
        if encoder_type not in _ENCODERS:
            why = (
                "ours has no such encoder"
                if encoder_type in _NO_ENCODERS
                else f"unknown{did_you_mean(encoder_type, _ENCODERS)}"
            )
            findings.append(
                Finding(
                    key=f"{name}.encoder_type",
                    value=encoder_type,
                    why=why,
                    instead="ours begins with BERT; give --encoder",
                )
            )
    known = [encoder_type for encoder_type in named if encoder_type in _ENCODERS]
    for other in known[1:]:
        findings.append(
            Finding(
                key=f"{named[other]}.encoder_type",
                value=other,
                why=f"a run has one encoder, {known[0]}",
                instead="give --encoder for another",
            )
        )
    return _ENCODERS[known[0] if known else "BERT"]


def longest(definitions: Mapping[str, Any]) -> int:
    """Tokens of a sequence: the largest max_seq_len, or what mt-dnn's prepro_std.py cuts at."""
    return max(
        (
            int(keys["max_seq_len"])
            for keys in definitions.values()
            if isinstance(keys, dict) and "max_seq_len" in keys
        ),
        default=512,
    )


def _task(
    name: str, keys: Mapping[str, Any], source: str, findings: list[Finding], problems: list[str]
) -> ImportedTask | None:
    def found(key: str, why: str, instead: str) -> None:
        value = ", ".join(map(str, keys[key])) if isinstance(keys.get(key), list) else keys.get(key)
        findings.append(Finding(key=f"{name}.{key}", value=value, why=why, instead=instead))

    for key in keys:
        if key not in KEYS:
            hint = f"here it is the setting {_FLAGS[key]}" if key in _FLAGS else "left out"
            found(key, f"unknown key{did_you_mean(key, KEYS)}", hint)
    missing = [key for key in ("data_format", "task_type") if key not in keys]
    if missing:
        problems.append(
            f"{source}: {name}: {' and '.join(missing)} missing; mt-dnn needs {'it' if len(missing) == 1 else 'them'} too"
        )
        return None
    task_type, data_format = str(keys["task_type"]), str(keys["data_format"])
    if task_type not in _TYPES:
        found(
            "task_type",
            _NO_TYPES.get(task_type, f"unknown{did_you_mean(task_type, [*_TYPES, *_NO_TYPES])}"),
            "the task is left out",
        )
        return None
    if data_format not in _FORMATS:
        known = "mt-dnn's own prepro_std.py has no reader for it" if data_format in _NO_FORMATS else None
        found("data_format", known or f"unknown{did_you_mean(data_format, _FORMATS)}", "the task is left out")
        return None
    (kind, losses), (form, num_texts) = _TYPES[task_type], _FORMATS[data_format]
    if form not in _FORMS_OF_KIND[kind]:
        found("data_format", f"does not fit task_type {task_type}", "the task is left out")
        return None
    form = "span" if kind == "span" else form
    theirs = tuple(str(label) for label in dict.fromkeys(keys.get("labels") or ()))
    settings: dict[str, Any] = {"kind": kind}
    labels = _labels(kind, keys, theirs, found)
    if labels is None:
        return None
    settings |= {"labels": list(labels)} if labels else {}
    metrics = _metrics(keys, kind, len(labels), found)
    settings |= {"metrics": metrics} if metrics else {}
    if "dropout_p" in keys and kind == "masked_lm":
        found("dropout_p", "ours has no dropout before the masked-word head", "left out")
    elif "dropout_p" in keys:
        settings["dropout"] = float(keys["dropout_p"])
    if keys.get("enable_san") and kind == "classification" and num_texts == 2:
        settings["head"] = "san"
    elif keys.get("enable_san"):
        found(
            "enable_san",
            "the answer network is for classification of pairs",
            "a linear head, as mt-dnn has there too",
        )
    if task_type == "SpanYN":
        settings["null_threshold"] = 0.0
    if kind == "masked_lm":
        settings["next_sentence"] = True  # MlmCriterion adds the two losses
    _losses(keys, kind, losses, found)
    if "max_seq_len" in keys:
        found("max_seq_len", "a run has one length", "encoder.max_length is the largest of all tasks")
    splits, left_out = our_splits(
        [str(split) for split in keys.get("split_names") or ("train", "dev", "test")]
    )
    for split in left_out:
        findings.append(
            Finding(
                key=f"{name}.split_names",
                value=split,
                why="neither a train, a dev nor a test split",
                instead="left out",
            )
        )
    ours = f"mtdnn_{name}" if name in BUILTIN_TASKS else name
    if ours != name:
        findings.append(
            Finding(
                key=name,
                value="(its name)",
                why="is a built-in task of ours, with files of its own",
                instead=f"called {ours} here",
            )
        )
    return ImportedTask(
        name=ours, theirs=name, settings=settings, form=form, num_texts=num_texts or 2, labels=theirs or labels, splits=splits
    )  # fmt: skip


def _labels(
    kind: str, keys: Mapping[str, Any], theirs: tuple[str, ...], found: Any
) -> tuple[str, ...] | None:
    """Our label names; () for kinds without; None if the task cannot be carried over."""
    number = int(keys.get("n_class") or 0)
    if kind == "classification":
        if theirs and number and number != len(theirs):
            found("n_class", f"{len(theirs)} labels are named", "ours has an output for each named label")
        labels = theirs or tuple(str(index) for index in range(number))
        if len(labels) < 2:
            found("n_class", "a classification needs two labels at least", "the task is left out")
            return None
        return labels
    if kind == "ranking":
        return ("other", "relevant")
    if kind != "token_classification":
        if theirs:
            found("labels", f"a {kind} has no label names here", "left out")
        return ()
    marks = [label for label in theirs if label in _MARKS]
    labels = tuple(label for label in theirs if label not in _MARKS)
    if marks:
        found(
            "labels",
            f"{', '.join(marks)} mark word pieces and special tokens",
            "ours leaves those without a label, and has no such class",
        )
    wrong = [label for label in labels if label != "O" and label[:2] not in ("B-", "I-")]
    if wrong or "O" not in labels:
        found(
            "labels",
            f"{wrong[0]} is no BIO label" if wrong else "O is missing",
            "ours tags entities; the task is left out",
        )
        return None
    partners = [f"{other}-{label[2:]}" for label in labels if label != "O" for other in ("B", "I")]
    added = [label for label in dict.fromkeys(partners) if label not in labels]
    if added:
        found("labels", f"{', '.join(added)} missing", "added at the end: ours wants B- and I- of every name")
    return labels + tuple(added)


def _metrics(keys: Mapping[str, Any], kind: str, num_labels: int, found: Any) -> list[str]:
    wanted = (
        [keys["metric_meta"]]
        if isinstance(keys.get("metric_meta"), str)
        else list(keys.get("metric_meta") or ())
    )
    metrics: list[str] = []
    for theirs in map(str, wanted):
        fitting = [name for name in _METRICS.get(theirs, ()) if kind in METRICS[name].kinds]
        if theirs == "F1" and fitting and num_labels != 2:
            found("metric_meta", "F1 is of two classes", "macro_f1")
            fitting = ["macro_f1"]
        if theirs == "F1MIC" and fitting:
            found("metric_meta", "F1MIC over all classes of one label a row is the accuracy", "accuracy")
        if theirs == "NERACC" and fitting:
            found("metric_meta", "NERACC prints seqeval's report", "entity_f1, its micro average")
        if not fitting:
            known = _NO_METRICS.get(theirs) or (
                f"unknown {theirs}{did_you_mean(theirs, _METRICS)}" if theirs not in _METRICS else None
            )
            found(
                "metric_meta",
                known or f"{theirs} is no metric of a {kind} here",
                f"the others, or those of every {kind}",
            )
        metrics += [
            name for name in fitting if name not in metrics and metric_misfit(name, kind, num_labels) is None
        ]
    return metrics


def _losses(keys: Mapping[str, Any], kind: str, losses: Sequence[str], found: Any) -> None:
    if keys.get("loss") is not None and keys["loss"] not in losses:
        found("loss", f"a {kind} has one loss here, {losses[0]}", "that one")
    if kind == "ranking" and "labels" in keys:
        found(
            "labels",
            "of a line's candidates mt-dnn trains the one with the highest label",
            "relevant: the highest label of its line; other: the rest",
        )
    if keys.get("kd_loss") is not None:
        found(
            "kd_loss",
            "works only with --mkd-opt and a file of teacher scores",
            "distillation.teachers learns from finished runs, by soft cross-entropy",
        )
    if keys.get("adv_loss") is not None:
        ours = "squared error" if kind == "regression" else "symmetric KL"
        same = {"SymKlCriterion": "symmetric KL", "MseCriterion": "squared error"}.get(
            str(keys["adv_loss"])
        ) == ours
        instead = (
            f"regularizer.name=smart does the same here ({ours})"
            if same
            else f"regularizer.name=smart uses {ours}"
        )
        instead = "regularizer.name=freelb applies to it, smart does not" if kind == "masked_lm" else instead
        found("adv_loss", "works only with --adv_train", instead)
