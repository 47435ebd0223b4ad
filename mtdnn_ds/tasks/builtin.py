"""The built-in tasks as one table: kind, labels, metrics and where the rows live. Reads and checks nothing.

Labels stand in the order of the Hugging Face hub's ClassLabel, so official ids (0/1 in GLUE's files and
submissions) are class ids here too. Metrics are the official ones (https://gluebenchmark.com/tasks).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mtdnn_ds.tasks.builtin_sources import (
    NO_GOLD_LABEL,
    BuiltinTask,
    answer_task,
    cola_task,
    entity_task,
    glue_task,
    hub_sources,
    quickstart_task,
    tsv_sources,
)

_NO_CONSENSUS = {"-": NO_GOLD_LABEL, "-1": NO_GOLD_LABEL}  # SNLI's files write -, the hub's ClassLabel -1
_NLI_LABELS = ("entailment", "neutral", "contradiction")
_SQUAD_METRICS = ("exact_match", "token_f1")
_PAIR = ("sentence1", "sentence2")
_PREMISE = ("premise", "hypothesis")
_ENTAILED = ("entailment", "not_entailment")

BUILTIN_TASKS: Mapping[str, BuiltinTask] = {
    "cola": cola_task(),
    "sst2": glue_task(
        "sst2", "SST-2", ("negative", "positive"), ("accuracy",), ("sentence",), ("sentence",), "label"
    ),
    "mrpc": glue_task(
        "mrpc",
        "MRPC",
        ("not_equivalent", "equivalent"),
        ("accuracy", "f1"),
        _PAIR,
        ("#1 String", "#2 String"),
        "Quality",
    ),
    "stsb": glue_task("stsb", "STS-B", (), ("pearson", "spearman"), _PAIR, _PAIR, "score"),
    "qqp": glue_task(
        "qqp",
        "QQP",
        ("not_duplicate", "duplicate"),
        ("accuracy", "f1"),
        ("question1", "question2"),
        ("question1", "question2"),
        "is_duplicate",
    ),
    "mnli": glue_task("mnli", "MNLI", _NLI_LABELS, ("accuracy",), _PREMISE, _PAIR, "gold_label"),
    "qnli": glue_task(
        "qnli", "QNLI", _ENTAILED, ("accuracy",), ("question", "sentence"), ("question", "sentence"), "label"
    ),
    # MT-DNN's relevance ranking (Liu et al. 2019, section 3.1): a question with all its candidate sentences
    # is one example.
    "qnli_ranking": replace(
        glue_task(
            "qnli",
            "QNLI",
            _ENTAILED,
            ("accuracy", "mrr"),
            ("question", "sentence"),
            ("question", "sentence"),
            "label",
        ),
        kind="ranking",
        options={"relevant_label": "entailment"},
    ),
    "rte": glue_task("rte", "RTE", _ENTAILED, ("accuracy",), _PAIR, _PAIR, "label"),
    "wnli": glue_task("wnli", "WNLI", ("not_entailment", "entailment"), ("accuracy",), _PAIR, _PAIR, "label"),
    "ax": BuiltinTask(  # GLUE's diagnostic set: predicted with MNLI's head, never trained on
        kind="classification",
        labels=_NLI_LABELS,
        metrics=("matthews",),
        remote=hub_sources("nyu-mll/glue", "ax", _PREMISE, splits={"test": "test"}),
        folder_setting="glue_dir",
        folder=tsv_sources("diagnostic", _PAIR, "", files={"test": "diagnostic.tsv"}),
    ),
    "snli": BuiltinTask(
        kind="classification",
        labels=_NLI_LABELS,
        metrics=("accuracy",),
        remote=hub_sources("stanfordnlp/snli", None, _PREMISE, labelled_test=True, label_words=_NO_CONSENSUS),
        folder_setting="snli_dir",
        folder=tsv_sources("", _PAIR, "gold_label", labelled_test=True, label_words=_NO_CONSENSUS),
    ),
    "scitail": BuiltinTask(
        kind="classification",
        labels=("neutral", "entails"),
        metrics=("accuracy",),
        remote=hub_sources("allenai/scitail", "tsv_format", _PREMISE, labelled_test=True),
        folder_setting="scitail_dir",
        inner_folder="tsv_format",
        folder=tsv_sources(
            "",
            ("0", "1"),
            "2",
            files={split: f"scitail_1.0_{split}.tsv" for split in ("train", "dev", "test")},
            header=False,
            labelled_test=True,
        ),
    ),
    "wnut17": entity_task(
        "leondz/wnut_17",
        ("corporation", "creative-work", "group", "location", "person", "product"),
        "wnut_dir",
    ),
    "squad": answer_task(
        "span",
        _SQUAD_METRICS,
        "rajpurkar/squad",
        ("question", "context"),
        "squad_dir",
        ("train-v1.1.json", "dev-v1.1.json"),
        more_columns=("id",),
    ),
    "squad_v2": replace(
        answer_task(
            "span",
            _SQUAD_METRICS,
            "rajpurkar/squad_v2",
            ("question", "context"),
            "squad_dir",
            ("train-v2.0.json", "dev-v2.0.json"),
            more_columns=("id",),
        ),
        options={"null_threshold": 0.0},
    ),
    "coqa": answer_task(
        "conversational_span",
        ("coqa_f1",),
        "stanfordnlp/coqa",
        ("questions", "story"),
        "coqa_dir",
        ("coqa-train-v1.0.json", "coqa-dev-v1.0.json"),
    ),
    "quac": replace(
        answer_task(
            "conversational_span",
            ("quac_f1",),
            "allenai/quac",
            ("questions", "context"),
            "quac_dir",
            ("train_v0.2.json", "val_v0.2.json"),
            more_columns=("orig_answers", "yesnos"),
        ),
        options={"max_answer_tokens": 50},  # its teachers' answers have up to 30 words
    ),
    "quickstart_acceptability": quickstart_task(
        "quickstart_acceptability", ("unacceptable", "acceptable"), ("matthews",), ("text",)
    ),
    "quickstart_sentiment": quickstart_task(
        "quickstart_sentiment", ("negative", "positive"), ("accuracy",), ("text",)
    ),
    "quickstart_paraphrase": quickstart_task(
        "quickstart_paraphrase", ("different", "paraphrase"), ("accuracy", "f1")
    ),
    "quickstart_entailment": quickstart_task("quickstart_entailment", _NLI_LABELS, ("accuracy",)),
    "quickstart_similarity": quickstart_task("quickstart_similarity", (), ("pearson", "spearman")),
}
