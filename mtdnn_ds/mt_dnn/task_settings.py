"""One mt-dnn task's labels, metrics, dropout and head as settings of ours. Neither its files nor its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtdnn_ds.config.errors import did_you_mean
from mtdnn_ds.mt_dnn.definition import LEFT_OUT, Definition
from mtdnn_ds.mt_dnn.names import LABEL_MARKS, METRIC_NAMES, NO_METRICS
from mtdnn_ds.tasks.metrics import METRICS, metric_misfit


def labels_of(definition: Definition, kind: str, theirs: tuple[str, ...]) -> tuple[str, ...] | None:
    """Our label names; () for kinds without; None if the task cannot be carried over.

    `theirs` are the definition's, in class-id order.
    """
    if kind == "classification":
        return _class_labels(definition, theirs)
    if kind == "ranking":
        return ("other", "relevant")
    if kind == "token_classification":
        return _tag_labels(definition, theirs)

    if theirs:
        definition.add_finding("labels", f"a {kind} has no label names here", "left out")
    return ()


def _class_labels(definition: Definition, theirs: tuple[str, ...]) -> tuple[str, ...] | None:
    number = int(definition.keys.get("n_class") or 0)
    if theirs and number and number != len(theirs):
        definition.add_finding(
            "n_class", f"{len(theirs)} labels are named", "ours has an output for each named label"
        )

    labels = theirs or tuple(str(index) for index in range(number))
    if len(labels) < 2:
        definition.add_finding("n_class", "a classification needs two labels at least", LEFT_OUT)
        return None
    return labels


def _tag_labels(definition: Definition, theirs: tuple[str, ...]) -> tuple[str, ...] | None:
    """O, and B- and I- of every name, in their order."""
    marks = [label for label in theirs if label in LABEL_MARKS]
    if marks:
        definition.add_finding(
            "labels",
            f"{', '.join(marks)} mark word pieces and special tokens",
            "ours leaves those without a label, and has no such class",
        )

    labels = tuple(label for label in theirs if label not in LABEL_MARKS)
    wrong = [label for label in labels if label != "O" and label[:2] not in ("B-", "I-")]
    if wrong or "O" not in labels:
        why = f"{wrong[0]} is no BIO label" if wrong else "O is missing"
        definition.add_finding("labels", why, f"ours tags entities; {LEFT_OUT}")
        return None

    partners = [f"{other}-{label[2:]}" for label in labels if label != "O" for other in ("B", "I")]
    added = [label for label in dict.fromkeys(partners) if label not in labels]
    if added:
        definition.add_finding(
            "labels", f"{', '.join(added)} missing", "added at the end: ours wants B- and I- of every name"
        )
    return labels + tuple(added)


def metrics_of(definition: Definition, kind: str, num_labels: int) -> list[str]:
    """Our metrics, in their order; none where the definition names none that a kind has."""
    wanted = definition.keys.get("metric_meta") or ()
    if isinstance(wanted, str):
        wanted = [wanted]

    metrics: list[str] = []
    for theirs in map(str, wanted):
        fitting = [name for name in METRIC_NAMES.get(theirs, ()) if kind in METRICS[name].kinds]
        if theirs == "F1" and fitting and num_labels != 2:
            definition.add_finding("metric_meta", "F1 is of two classes", "macro_f1")
            fitting = ["macro_f1"]
        if theirs == "F1MIC" and fitting:
            why = "F1MIC over all classes of one label a row is the accuracy"
            definition.add_finding("metric_meta", why, "accuracy")
        if theirs == "NERACC" and fitting:
            definition.add_finding(
                "metric_meta", "NERACC prints seqeval's report", "entity_f1, its micro average"
            )
        if not fitting:
            definition.add_finding(
                "metric_meta", _why_no_metric(theirs, kind), f"the others, or those of every {kind}"
            )
        for name in fitting:
            if name not in metrics and metric_misfit(name, kind, num_labels) is None:
                metrics.append(name)
    return metrics


def _why_no_metric(theirs: str, kind: str) -> str:
    if theirs in NO_METRICS:
        return NO_METRICS[theirs]
    if theirs not in METRIC_NAMES:
        return f"unknown {theirs}{did_you_mean(theirs, METRIC_NAMES)}"
    return f"{theirs} is no metric of a {kind} here"


def other_settings(definition: Definition, kind: str, num_texts: int) -> dict[str, Any]:
    """Dropout, head, and what the loss of the task's type asks for."""
    keys = definition.keys
    settings: dict[str, Any] = {}
    if "dropout_p" in keys and kind == "masked_lm":
        definition.add_finding("dropout_p", "ours has no dropout before the masked-word head", "left out")
    elif "dropout_p" in keys:
        settings["dropout"] = float(keys["dropout_p"])

    if keys.get("enable_san") and kind == "classification" and num_texts == 2:
        settings["head"] = "san"
    elif keys.get("enable_san"):
        why = "the answer network is for classification of pairs"
        definition.add_finding("enable_san", why, "a linear head, as mt-dnn has there too")

    if str(keys["task_type"]) == "SpanYN":
        settings["null_threshold"] = 0.0
    if kind == "masked_lm":
        settings["next_sentence"] = True  # MlmCriterion adds the two losses
    return settings


def note_losses(definition: Definition, kind: str, losses: Sequence[str]) -> None:
    """Findings on the keys that name losses; `losses`: what the kind's one loss is called there."""
    keys = definition.keys
    if keys.get("loss") is not None and keys["loss"] not in losses:
        definition.add_finding("loss", f"a {kind} has one loss here, {losses[0]}", "that one")

    if kind == "ranking" and "labels" in keys:
        definition.add_finding(
            "labels",
            "of a line's candidates mt-dnn trains the one with the highest label",
            "relevant: the highest label of its line; other: the rest",
        )

    if keys.get("kd_loss") is not None:
        definition.add_finding(
            "kd_loss",
            "works only with --mkd-opt and a file of teacher scores",
            "distillation.teachers learns from finished runs, by soft cross-entropy",
        )

    if keys.get("adv_loss") is not None:
        instead = _instead_of_adversarial(str(keys["adv_loss"]), kind)
        definition.add_finding("adv_loss", "works only with --adv_train", instead)


def _instead_of_adversarial(theirs: str, kind: str) -> str:
    if kind == "masked_lm":
        return "regularizer.name=freelb applies to it, smart does not"

    ours = "squared error" if kind == "regression" else "symmetric KL"
    known = {"SymKlCriterion": "symmetric KL", "MseCriterion": "squared error"}
    if known.get(theirs) == ours:
        return f"regularizer.name=smart does the same here ({ours})"
    return f"regularizer.name=smart uses {ours}"
