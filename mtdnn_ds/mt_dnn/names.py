"""mt-dnn's names and what they are here: task types, formats, metrics, encoders, keys, splits. No logic.

Theirs (github.com/namisan/mt-dnn) are enumerations of its modules data_utils.task_def, data_utils.metrics,
mt_dnn.loss and experiments.exp_def.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

Form = Literal["texts", "candidates", "words", "span", "cloze", "documents"]
"""How a line of a task's canonical file is made up (data_files.py)."""

# task_type -> (our kind, the loss that our kind has, in their name)
TYPES: Mapping[str, tuple[str, tuple[str, ...]]] = {
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
NO_TYPES: Mapping[str, str] = {
    "SeqenceGeneration": (
        "ours has encoders, which generate no text; the same task as a Classification or Regression can be "
        "imported"
    ),
    "SpanSeqenceLabeling": (
        "ours has no kind with spans and tags in one head; write it as two tasks, a Span and a "
        "SeqenceLabeling"
    ),
}

# data_format -> (form, texts of a line)
FORMATS: Mapping[str, tuple[Form, int]] = {
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
NO_FORMATS = ("CLUE_CLASSIFICATION", "CLUE_GEN")
FORMS_OF_KIND: Mapping[str, tuple[Form, ...]] = {
    "classification": ("texts",),
    "regression": ("texts",),
    "ranking": ("candidates", "cloze"),
    "span": ("span", "texts"),  # SQuAD's canonical lines are a pair whose label holds the answer
    "token_classification": ("words",),
    "masked_lm": ("documents",),
}

# metric_meta -> our metrics, of which those of the task's kind are taken
METRIC_NAMES: Mapping[str, tuple[str, ...]] = {
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
NO_METRICS: Mapping[str, str] = {
    "AUC": "ours has no area under the curve",
    "CMAT": "ours has no confusion matrix among its metrics",
}

# encoder_type -> hub name
ENCODERS: Mapping[str, str] = {
    "BERT": "google-bert/bert-base-uncased",
    "ROBERTA": "FacebookAI/roberta-base",
    "DEBERTA": "microsoft/deberta-base",
    "ELECTRA": "google/electra-base-discriminator",
}
NO_ENCODERS = ("XLNET", "SAN", "XLM", "T5", "T5G")

# Every key that experiments.exp_def reads, now or in an earlier version, and max_seq_len, a flag of
# prepro_std.
KEYS = (
    "data_format",
    "encoder_type",
    "dropout_p",
    "enable_san",
    "labels",
    "metric_meta",
    "loss",
    "kd_loss",
    "adv_loss",
    "n_class",
    "split_names",
    "task_type",
    "max_seq_len",
)
# Flags of mt-dnn's training script that people look for in a definition -> our settings
SETTINGS: Mapping[str, str] = {
    "batch_size": "batch.examples_per_step",
    "learning_rate": "optimizer.lr",
    "epochs": "train.epochs",
    "max_seq_length": "encoder.max_length",
    "optimizer": "optimizer.name",
    "weight_decay": "optimizer.weight_decay",
    "warmup": "schedule.warmup",
    "seed": "train.seed",
}
LABEL_MARKS = ("X", "CLS", "SEP")  # labels of word pieces and special tokens, which are no classes here

_ROLES = (("train", "train"), ("dev", "dev"), ("valid", "dev"), ("val", "dev"), ("test", "test"))


def our_splits(names: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """{our split: theirs}, and the names that are none.

    matched_dev, mismatched_dev -> dev, dev_mismatched.

    All training splits become one; the first dev and the first test split keep those names.
    """
    splits: dict[str, tuple[str, ...]] = {}
    left_out = []
    for name in names:
        role = next((ours for word, ours in _ROLES if word in name.lower()), None)
        if role is None:
            left_out.append(name)
        elif role == "train":
            splits["train"] = (*splits.get("train", ()), name)
        else:
            splits[_free_name(role, name, splits)] = (name,)
    return splits, left_out


def _free_name(role: str, name: str, splits: Mapping[str, object]) -> str:
    """The role, with what else is in the name where that is taken, with a number where both are."""
    if role not in splits:
        return role

    rest = re.sub("valid|dev|val|test", "", name, flags=re.IGNORECASE)
    rest = re.sub(r"[^A-Za-z0-9]+", "_", rest).strip("_")
    ours = f"{role}_{rest or len(splits)}"
    return ours if ours not in splits else f"{ours}_{len(splits)}"
