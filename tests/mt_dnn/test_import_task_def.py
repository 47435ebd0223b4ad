"""Task definitions of mt-dnn become recipes that load and train:
every key and value in use, canonical TSV and JSON of token ids.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.processes import run_command, training_lines, write_json, zero_config

from mtdnn_ds.cli import main
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.data.sources.tables import iterate_rows
from mtdnn_ds.mt_dnn.task_def import translate
from mtdnn_ds.tasks.resolve import resolve_tasks

CE = {"loss": "CeCriterion", "kd_loss": "MseCriterion", "adv_loss": "SymKlCriterion", "enable_san": False}
PAIR, SINGLE = {"data_format": "PremiseAndOneHypothesis"}, {"data_format": "PremiseOnly"}
CLASSES, TAGS = {"task_type": "Classification"}, ["O", "B-PER", "I-PER", "X", "CLS", "SEP"]

# One task of every format; values are those that mt-dnn's experiments use.
DEFINITIONS: dict[str, dict[str, Any]] = {
    "cola": {**SINGLE, **CLASSES, **CE, "dropout_p": 0.05, "metric_meta": ["ACC", "MCC"], "n_class": 2},
    "mnli": {
        **PAIR,
        **CLASSES,
        **CE,
        "enable_san": True,
        "labels": ["contradiction", "neutral", "entailment"],
        "metric_meta": ["ACC"],
        "n_class": 3,
        "split_names": ["train", "matched_dev", "mismatched_dev", "matched_test"],
    },
    "stsb": {
        **PAIR,
        "task_type": "Regression",
        "loss": "MseCriterion",
        "adv_loss": "MseCriterion",
        "metric_meta": ["Pearson", "Spearman"],
        "n_class": 1,
    },
    "anli": {
        **PAIR,
        **CLASSES,
        "labels": ["c", "n", "e"],
        "metric_meta": ["ACC"],
        "n_class": 3,
        "split_names": ["r1_train", "r2_train", "r1_dev"],
    },
    "copa": {
        "data_format": "PremiseAndMultiHypothesis",
        "task_type": "Ranking",
        "loss": "RankCeCriterion",
        "metric_meta": ["ACC"],
        "n_class": 1,
    },
    "qnnli": {
        "data_format": "PremiseAndMultiHypothesis",
        "task_type": "Ranking",
        "labels": ["not_entailment", "entailment"],
        "n_class": 1,
        "split_names": ["train"],
    },
    "record": {
        "data_format": "ClozeChoice",
        "task_type": "ClozeChoice",
        "metric_meta": ["EmF1"],
        "n_class": 1,
        "split_names": ["train"],
    },
    "ner": {
        "data_format": "Seqence",
        "task_type": "SeqenceLabeling",
        "labels": TAGS,
        "loss": "SeqCeCriterion",
        "metric_meta": ["SeqEval"],
        "n_class": 6,
    },
    "squad-v2": {
        "data_format": "MRC",
        "task_type": "SpanYN",
        "loss": "SpanCeCriterion",
        "metric_meta": ["EmF12"],
        "n_class": 2,
    },
    "mlm": {
        "data_format": "MLM",
        "task_type": "MaskLM",
        "loss": "MlmCriterion",
        "metric_meta": ["ACC"],
        "n_class": 30522,
        "split_names": ["train"],
    },
}

FILES = {
    "cola_train.tsv": '0\t1\tThe dog barks.\n1\t0\tDog the barks.\n2\t1\tA "quoted bird sings.\n',
    "cola_dev.tsv": "0\t1\tThe cat sleeps.\n1\t0\tCat sleeps the.\n",
    "mnli_train.tsv": (
        "0\tneutral\tA man eats.\tHe is hungry.\n1\tentailment\tA man eats.\tSomebody eats.\n"
        "2\tcontradiction\tA man eats.\tNobody eats.\n"
    ),
    "mnli_matched_dev.tsv": "0\tneutral\tA girl runs.\tShe is late.\n",
    "mnli_mismatched_dev.tsv": "0\tentailment\tA girl runs.\tShe moves.\n",
    "mnli_matched_test.tsv": "0\tneutral\tA boy runs.\tHe moves.\n",
    "stsb_train.tsv": "0\t4.5\tA dog.\tA hound.\n1\t0.5\tA dog.\tA tree.\n",
    "stsb_dev.tsv": "0\t5.0\tA cat.\tA cat.\n1\t0\tA cat.\tA car.\n",
    "anli_r1_train.tsv": "0\tc\tIt is hot.\tIt is cold.\n",
    "anli_r2_train.tsv": "7\te\tIt is hot.\tIt is warm.\n",
    "anli_r1_dev.tsv": "0\tn\tIt is hot.\tIt is July.\n",
    "copa_train.tsv": (
        "5\t5,5\t0,1\tThe man fell.\tbecause it was dry\tbecause it was icy\n"
        "6\t6,6\t1,0\tHe ran.\tso he was tired\tso he was blue\n"
    ),
    "copa_dev.tsv": "9\t9,9\t1,0\tShe smiled.\tbecause she was glad\tbecause she was sad\n",
    "qnnli_train.tsv": "1\t3,4\tnot_entailment,entailment\tWho came?\tIt rained.\tAnn came.\n",
    "record_train.tsv": "2\t['Bo', 'Al']\t['Al']\t[0, 1]\tBo met Al.\tBo was met.\tAl was met.\n",
    "ner_train.tsv": (
        "0\t['B-PER', 'I-PER', 'O']\t['Ada', 'Lovelace', 'wrote']\n1\t['O', 'B-PER']\t['with', \"O'Hara\"]\n"
    ),
    "ner_dev.tsv": "0\t['B-PER', 'O']\t['Bob', 'sleeps']\n",
    "squad-v2_train.tsv": (
        "a\t4:::9:::0:::River\tThe River runs. EOSEOS\tWhat runs?\n"
        "b\t-1:::-1:::1:::\tThe River runs. EOSEOS\tWho sings?\n"
    ),
    "squad-v2_dev.tsv": "c\t0:::3:::0:::The\tThe end of it. EOSEOS\tWhich end?\n",
    "mlm_train.txt": (
        "First sentence here.\nSecond sentence there.\n"
        "A third one follows.\n\nAnother text begins.\nIt goes on.\n"
    ),
}


def write_data(folder: Path, files: dict[str, str] = FILES) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def import_it(folder: Path, definitions: dict[str, Any], *more: str, files: dict[str, str] = FILES) -> int:
    data = write_data(folder / "canonical_data", files)
    (folder / "task_def.yml").write_text(yaml.safe_dump(definitions, sort_keys=False))
    words = [
        "import-task-def",
        str(folder / "task_def.yml"),
        "--data",
        str(data),
        "--output",
        str(folder / "recipes/all.yaml"),
    ]
    return main([*words, *more])


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    assert import_it(folder, DEFINITIONS, "--encoder", str(tiny_encoder)) == 0
    return folder


def test_every_format_has_its_settings(imported: Path) -> None:
    recipe = load_recipe(str(imported / "recipes/all.yaml"), {})
    specs = {spec.name: spec for spec in resolve_tasks(recipe)}
    assert list(specs) == [
        "mtdnn_cola",
        "mtdnn_mnli",
        "mtdnn_stsb",
        "anli",
        "copa",
        "qnnli",
        "record",
        "ner",
        "squad-v2",
        "mlm",
    ]
    assert recipe.encoder.max_length == 512
    cola, mnli, stsb = (specs[f"mtdnn_{name}"] for name in ("cola", "mnli", "stsb"))
    assert (cola.kind, cola.labels, cola.metrics, cola.dropout) == (
        "classification",
        ("0", "1"),
        ("accuracy", "matthews"),
        0.05,
    )
    assert (mnli.head, mnli.labels) == ("san", ("contradiction", "neutral", "entailment"))
    assert {split: Path(source.path).name for split, source in mnli.splits.items()} == {
        "train": "mnli_train.tsv",
        "dev": "mnli_matched_dev.tsv",
        "dev_mismatched": "mnli_mismatched_dev.tsv",
        "test": "mnli_matched_test.tsv",
    }
    assert (stsb.kind, stsb.metrics) == ("regression", ("pearson", "spearman"))
    assert specs["ner"].labels == ("O", "B-PER", "I-PER") and specs["ner"].metrics == ("entity_f1",)
    assert (
        specs["squad-v2"].metrics == ("exact_match", "token_f1")
        and specs["squad-v2"].options["null_threshold"] == 0.0
    )
    assert specs["mlm"].options["next_sentence"] is True


def test_rows_are_those_of_the_files(imported: Path) -> None:
    specs = {spec.name: spec for spec in resolve_tasks(load_recipe(str(imported / "recipes/all.yaml"), {}))}

    def rows(task: str, split: str = "train") -> list[Any]:
        return [cells for _, cells in iterate_rows(specs[task].splits[split])]

    assert rows("mtdnn_cola")[2] == ('A "quoted bird sings.', "1")
    assert rows("mtdnn_mnli")[0] == ("A man eats.", "He is hungry.", "neutral")
    assert rows("anli") == [("It is hot.", "It is cold.", "c"), ("It is hot.", "It is warm.", "e")]
    assert rows("copa")[:2] == [
        ("The man fell.", "because it was dry", "copa_train.tsv:1", "other"),
        ("The man fell.", "because it was icy", "copa_train.tsv:1", "relevant"),
    ]
    assert [row[1] for row in rows("qnnli") if row[-1] == "relevant"] == ["Ann came."]
    assert [row[1] for row in rows("record") if row[-1] == "relevant"] == ["Al was met."]
    assert rows("ner")[1] == (["with", "O'Hara"], ["O", "B-PER"])
    assert rows("squad-v2") == [
        ("What runs?", "The River runs.", {"text": ["River"], "answer_start": [4]}),
        ("Who sings?", "The River runs.", {"text": [], "answer_start": []}),
    ]


def test_it_trains(imported: Path) -> None:
    deepspeed = write_json(imported / "zero2.json", zero_config(2))
    command = [
        "-m",
        "mtdnn_ds",
        "train",
        "--recipe",
        str(imported / "recipes/all.yaml"),
        "--deepspeed_config",
        str(deepspeed),
    ]
    settings = [
        "--train.steps",
        "3",
        "--mixture.mixing",
        "per_example",
        "--mixture.rates",
        "uniform",
        "--encoder.max_length",
        "48",
    ]
    settings += ["--data.cache_dir", str(imported / "cache"), "--optimizer.name", "adamw"]
    done = run_command([*command, "--output_dir", str(imported / "run"), *settings], OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-3000:]
    steps = training_lines(imported / "run")
    assert len(steps) == 3 and set(steps[-1]["task_examples"]) == {
        f"mtdnn_{name}" for name in ("cola", "mnli", "stsb")
    } | set(DEFINITIONS) - {
        "cola",
        "mnli",
        "stsb",
    }


def test_what_is_not_carried_over_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    definitions = {
        "boolq": {
            **PAIR,
            **CLASSES,
            **CE,
            "n_class": 2,
            "metric_meta": ["AUC", "CMAT", "F1MIC", "ACCC"],
            "encoder_type": "T5",
            "drop_p": 0.1,
        },
        "tri": {
            **PAIR,
            **CLASSES,
            "labels": ["a", "b", "c"],
            "n_class": 2,
            "metric_meta": ["F1"],
            "loss": "MseCriterion",
            "max_seq_len": 128,
        },
        "one": {
            **SINGLE,
            **CLASSES,
            "n_class": 2,
            "enable_san": True,
            "adv_loss": "JSCriterion",
            "epochs": 3,
        },
        "gen": {**PAIR, "task_type": "SeqenceGeneration", "n_class": 2},
        "clue": {"data_format": "CLUE_CLASSIFICATION", **CLASSES, "n_class": 2},
        "pos": {
            "data_format": "Seqence",
            "task_type": "SeqenceLabeling",
            "labels": ["NN", "VB"],
            "n_class": 2,
        },
        "chunk": {
            "data_format": "Seqence",
            "task_type": "SeqenceLabeling",
            "labels": ["O", "B-NP", "I-NP", "B-PP"],
            "metric_meta": ["NERACC"],
        },
    }
    files = {f"{name}_train.tsv": "0\t1\ta b\tc d\n1\t0\te f\tg h\n" for name in ("boolq", "gen", "clue")}
    files |= {
        "tri_train.tsv": "0\tb\ta b\tc d\n",
        "one_train.tsv": "0\t1\ta b\n",
        "chunk_train.tsv": "0\t['B-NP']\t['dogs']\n",
        "pos_train.tsv": "",
    }
    assert import_it(tmp_path, definitions, files=files) == 0
    said = capsys.readouterr().out
    for line in (
        "boolq.drop_p=0.1: unknown key; did you mean 'dropout_p'?",
        "boolq.encoder_type=T5: ours has no such encoder; ours begins with BERT; give --encoder",
        "ours has no area under the curve",
        "ours has no confusion matrix among its metrics",
        "unknown ACCC; did you mean 'ACC'?",
        "F1MIC over all classes of one label a row is the accuracy",
        (
            "boolq.kd_loss=MseCriterion: works only with --mkd-opt and a file of teacher scores; "
            "distillation.teachers"
        ),
        (
            "boolq.adv_loss=SymKlCriterion: works only with --adv_train; "
            "regularizer.name=smart does the same here (symmetric KL)"
        ),
        "tri.n_class=2: 3 labels are named; ours has an output for each named label",
        "tri.metric_meta=F1: F1 is of two classes; macro_f1",
        "tri.loss=MseCriterion: a classification has one loss here, CeCriterion; that one",
        "tri.max_seq_len=128: a run has one length; encoder.max_length is the largest of all tasks",
        "one.enable_san=True: the answer network is for classification of pairs",
        "one.adv_loss=JSCriterion: works only with --adv_train; regularizer.name=smart uses symmetric KL",
        "one.epochs=3: unknown key",
        "here it is the setting train.epochs",
        "gen.task_type=SeqenceGeneration: ours has encoders, which generate no text",
        (
            "clue.data_format=CLUE_CLASSIFICATION: mt-dnn's own prepro_std.py has no reader for it; "
            "the task is left out"
        ),
        "pos.labels=NN, VB: NN is no BIO label; ours tags entities; the task is left out",
        "chunk.labels=O, B-NP, I-NP, B-PP: I-PP missing; added at the end",
        "boolq.split_names=dev: boolq_dev.tsv is not there; left out",
    ):
        assert line in said, line
    recipe = yaml.safe_load((tmp_path / "recipes/all.yaml").read_text())
    assert list(recipe["tasks"]) == ["boolq", "tri", "one", "chunk"] and recipe["encoder"] == {
        "path": "google-bert/bert-base-uncased",
        "max_length": 128,
    }
    assert recipe["tasks"]["boolq"]["metrics"] == ["accuracy"] and recipe["tasks"]["tri"]["metrics"] == [
        "macro_f1"
    ]
    assert "# tri.metric_meta=F1: F1 is of two classes" in (tmp_path / "recipes/all.yaml").read_text()


def test_wrong_values_are_refused_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    definitions = {
        "one": {
            **SINGLE,
            **CLASSES,
            "n_class": "x",
            "dropout_p": 1.5,
            "labels": 5,
            "split_names": "train",
            "enable_san": "no",
        },
        "two": {"data_format": ["PremiseOnly"], "max_seq_len": 0},
        "three": {"data_format": "PremiseOnly"},
        "four": ["PremiseOnly"],
    }
    assert import_it(tmp_path, definitions) == 2
    where = tmp_path / "task_def.yml"
    assert capsys.readouterr().err.splitlines() == [
        f"error: {where}: one.n_class=x: must be a whole number, at least 1",
        f"error: {where}: one.dropout_p=1.5: must be a number from 0 to below 1",
        f"error: {where}: one.enable_san=no: must be true or false",
        f"error: {where}: one.labels=5: must be a list of names",
        f"error: {where}: one.split_names=train: must be a list of names",
        f"error: {where}: two.max_seq_len=0: must be a whole number, at least 8",
        f"error: {where}: two.data_format=['PremiseOnly']: must be a name",
        f"error: {where}: three: task_type missing; mt-dnn needs it too",
        (
            f"error: {where}: four: a task is a mapping of keys (data_format, task_type, ...), "
            "not ['PremiseOnly']"
        ),
    ]


def test_every_value_in_use_is_known() -> None:
    """The enumerations of mt-dnn's data_utils.task_def, data_utils.metrics and mt_dnn.loss (2021 to 2024)."""
    base = {**PAIR, **CLASSES, "n_class": 2}
    for key, values in {
        "task_type": (
            "Classification Regression Ranking Span SpanYN SeqenceLabeling "
            "MaskLM SpanSeqenceLabeling SeqenceGeneration ClozeChoice"
        ),
        "data_format": "PremiseOnly PremiseAndOneHypothesis PremiseAndMultiHypothesis "
        "Seqence MLM CLUE_CLASSIFICATION CLUE_SPAN CLUE_SEQ CLUE_GEN "
        "ClozeChoice MRC",
        "metric_meta": (
            "ACC F1 MCC Pearson Spearman AUC SeqEval EmF1 F1MAC F1MIC CMAT EmF12 SeqEvalList NERACC"
        ),
    }.items():
        for value in values.split():
            _, findings = translate(
                {"t": {**base, key: [value] if key == "metric_meta" else value}}, "task_def.yml"
            )
            assert not [finding for finding in findings if "unknown" in finding.why], (key, value)


def test_token_ids_are_decoded_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_encoder: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    pair = tokenizer("A man eats.", "Somebody eats.")
    ranked = [tokenizer("Who came?", each)["input_ids"] for each in ("It rained.", "Ann came.")]
    words = tokenizer.convert_tokens_to_ids(["[CLS]", "love", "##lace", "wrote", "[SEP]"])
    rows = {
        "snlisample": {
            "uid": "0",
            "label": 2,
            "token_id": pair["input_ids"],
            "type_id": pair["token_type_ids"],
        },
        "copa": {
            "uid": "1",
            "label": 1,
            "token_id": ranked,
            "type_id": ranked,
            "ruid": ["1", "2"],
            "olabel": [0.0, 1.0],
        },
        "ner": {"uid": "2", "label": [4, 1, 3, 0, 5], "token_id": words, "type_id": [0] * 5},
    }
    definitions = {
        "snlisample": {
            **PAIR,
            **CLASSES,
            "labels": ["contradiction", "neutral", "entailment"],
            "n_class": 3,
            "split_names": ["train"],
        },
        "copa": {**DEFINITIONS["copa"], "split_names": ["train"]},
        "ner": {**DEFINITIONS["ner"], "split_names": ["train"]},
    }
    for name, row in rows.items():
        (tmp_path / "canonical_data/bert_base_uncased").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"canonical_data/bert_base_uncased/{name}_train.json").write_text(json.dumps(row) + "\n")
    (tmp_path / "task_def.yml").write_text(yaml.safe_dump(definitions, sort_keys=False))
    words_of = ["import_task_def", str(tmp_path / "task_def.yml"), "--data", str(tmp_path / "canonical_data")]
    assert main([*words_of, "--output", str(tmp_path / "a.yaml")]) == 2
    assert (
        "snlisample_train.json has only token ids, and no texts" in capsys.readouterr().err
        and not (tmp_path / "a.yaml").exists()
    )
    assert main([*words_of, "--output", str(tmp_path / "b.yaml"), "--decode_with", str(tiny_encoder)]) == 0
    assert (
        "capitals, spaces and what was cut off are lost; texts are decoded from them"
        in capsys.readouterr().out
    )
    made = {
        name: [
            json.loads(line) for line in (tmp_path / f"b_rows/{name}_train.jsonl").read_text().splitlines()
        ]
        for name in rows
    }
    assert {key: made["snlisample"][0][key] for key in ("label", "text1", "text2")} == {
        "label": "entailment",
        "text1": "a man eats.",
        "text2": "somebody eats.",
    }
    assert [(row["candidate"], row["label"]) for row in made["copa"]] == [
        ("it rained.", "other"),
        ("ann came.", "relevant"),
    ]
    assert (made["ner"][0]["words"], made["ner"][0]["tags"]) == (["lovelace", "wrote"], ["B-PER", "O"])


def test_nothing_is_overwritten_and_bad_lines_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    definitions = {"copa": DEFINITIONS["copa"], "ner": DEFINITIONS["ner"]}
    files = {
        "copa_train.tsv": "5\t5\t0,1\tpremise\tone\n6\t6,6\t1\tp\tone\ttwo\n",
        "ner_train.tsv": "0\t__import__('os')\t['a']\n",
    }
    assert import_it(tmp_path, definitions, files=files) == 2
    said = capsys.readouterr().err
    assert (
        "2 lines of task copa cannot be read" in said
        and "line 1: 5 fields" in said
        and "line 2: 1 labels for 2 hypotheses" in said
    )
    assert "ner_train.tsv: line 1: cannot be read (ValueError" in said
    assert list((tmp_path / "recipes").iterdir()) == []
    (tmp_path / "recipes/all.yaml").write_text("mine")
    words = ["--data", str(tmp_path / "canonical_data"), "--output", str(tmp_path / "recipes/all.yaml")]
    assert main(["import-task-def", str(tmp_path / "task_def.yml"), *words]) == 2
    assert "is there already; give another name" in capsys.readouterr().err
    assert (tmp_path / "recipes/all.yaml").read_text() == "mine"
