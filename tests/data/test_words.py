"""Sentences of tagged words as examples:
equal to transformers' is_split_into_words, labels on first pieces, lost words count as O.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtdnn_ds.config.errors import ConfigError, DataError
from mtdnn_ds.data.cache.build import prepare
from mtdnn_ds.data.cache.tokenize import load_tokenizer, word_prefix
from mtdnn_ds.data.examples import make_examples
from mtdnn_ds.data.examples.base import Gathered, TermOutputs
from mtdnn_ds.data.examples.words import WordExamples
from mtdnn_ds.tasks.metrics import compute_metrics
from mtdnn_ds.tasks.spec import Source, TaskSpec

LABELS = ("O", "B-x", "I-x")
# Accents, punctuation inside words, a word of only marks, Chinese,
# an emoji, and two words that BERT's tokenizer drops entirely.
SENTENCES = [
    (["Eli", "sings", "in", "Bad-Ems", "."], [1, 0, 0, 1, 0]),
    (["\u200b", "naïve", "don't", "\u0000\ufffd", "你好", "😀"], [0, 1, 2, 1, 1, 2]),
    (["supercalifragilistic", "expialidocious", "#WNUT17", "http://t.co/x"], [1, 2, 0, 0]),
    (["\u200b"], [1]),
    (["End"], [0]),
]


def examples_of(
    folder: Path,
    encoder: Path,
    sentences: list[Any] = SENTENCES,
    *,
    max_length: int = 128,
    labelled: bool = True,
) -> Any:
    folder.mkdir(exist_ok=True)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps({"words": words, "tags": tags}) + "\n" for words, tags in sentences))
    source = Source(
        format="jsonl", path=str(file), text_columns=("words",), label_column="tags" if labelled else None
    )
    spec = TaskSpec(
        name="ner",
        kind="token_classification",
        labels=LABELS,
        metrics=("entity_f1",),
        splits={"train": source},
    )
    split = prepare([spec], tokenizer_path=str(encoder), cache_dir=str(folder / "cache"))["ner"]["train"]
    return make_examples(spec, split, max_length=max_length)


def sequences_and_labels(gathered: Gathered) -> list[tuple[list[int], list[float | None]]]:
    """Ids of each sequence, and beside each token its label; None where there is none."""
    (targets,) = gathered.targets
    labels = dict(zip(targets.rows.tolist(), targets.labels.tolist(), strict=True))
    ends = np.cumsum(gathered.lengths).tolist()
    return [
        (gathered.input_ids[begin:end].tolist(), [labels.get(token) for token in range(begin, end)])
        for begin, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


def theirs(
    tokenizer: Any, words: list[str], tags: list[int], max_length: int
) -> tuple[list[int], list[float | None]]:
    """Labels on the first piece of each word, as in transformers' run_ner.py."""
    encoded = tokenizer(
        words, is_split_into_words=True, truncation=True, max_length=max_length, padding=False
    )
    labels: list[float | None] = []
    before = None
    for word in encoded.word_ids():
        labels.append(None if word is None or word == before else float(tags[word]))
        before = word
    return encoded["input_ids"], labels


@pytest.mark.parametrize("max_length", [128, 8])
def test_sequences_and_labels_equal_transformers(max_length: int, tmp_path: Path, minilm: Path) -> None:
    examples: WordExamples = examples_of(tmp_path, minilm, max_length=max_length)
    with_tokens = [sentence for sentence in SENTENCES if sentence[0] != ["\u200b"]]
    assert examples.num_examples == len(with_tokens) == 4
    order = np.array([2, 0, 3, 1, 2])
    ours = sequences_and_labels(examples.gather(order, np.zeros(5, dtype=np.int64)))
    tokenizer = load_tokenizer(str(minilm))
    assert ours == [theirs(tokenizer, *with_tokens[example], max_length) for example in order]
    assert examples.lengths[order].tolist() == [len(ids) for ids, _ in ours]
    assert [examples.source_row(example) for example in range(4)] == [1, 2, 3, 5]
    gathered = examples.gather(order, np.zeros(5, dtype=np.int64))
    assert gathered.targets[0].examples.tolist() == sorted(gathered.targets[0].examples.tolist())


def test_real_sentences_equal_transformers(tmp_path: Path, minilm: Path, real_data: Path) -> None:
    lines = (real_data / "WNUT17" / "dev.conll").read_text(encoding="utf-8").strip().split("\n\n")[:200]
    sentences = [
        ([line.split("\t")[0] for line in part.split("\n")], [0] * len(part.split("\n"))) for part in lines
    ]
    examples = examples_of(tmp_path, minilm, sentences, max_length=32)
    assert examples.num_examples == 200
    tokenizer = load_tokenizer(str(minilm))
    ours = sequences_and_labels(examples.gather(np.arange(200), np.zeros(200, dtype=np.int64)))
    assert ours == [theirs(tokenizer, words, tags, 32) for words, tags in sentences]


def byte_level_tokenizer(folder: Path, *, add_prefix_space: bool) -> Path:
    """A RoBERTa folder with a byte-level BPE of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([" ".join(words) for words, _ in SENTENCES] * 3, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    fast.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_byte_level_bpe_cuts_words_as_inside_a_text(add_prefix_space: bool, tmp_path: Path) -> None:
    folder = byte_level_tokenizer(tmp_path / "bpe", add_prefix_space=add_prefix_space)
    assert word_prefix(load_tokenizer(str(folder))) == ("" if add_prefix_space else " ")
    sentences = [(["Eli", "sings", "in", "Bad-Ems"], [1, 0, 0, 1]), (["End"], [0])]
    ours = sequences_and_labels(
        examples_of(tmp_path / "data", folder, sentences).gather(np.arange(2), np.zeros(2, dtype=np.int64))
    )
    with_prefix = load_tokenizer(str(byte_level_tokenizer(tmp_path / "reference", add_prefix_space=True)))
    assert ours == [theirs(with_prefix, words, tags, 128) for words, tags in sentences]


def test_a_tokenizer_that_does_not_cut_words_is_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    whole_texts = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    )
    with pytest.raises(
        ConfigError,
        match=r"^encoder.tokenizer: cuts 'a b' into other tokens than its words, so words cannot be labelled",
    ):
        word_prefix(whole_texts)


def outputs_for(examples: WordExamples, tags: list[int]) -> TermOutputs:
    """A model that answers `tags`, one for each supervised word."""
    labels = (
        examples.gather(np.arange(examples.num_examples), np.zeros(examples.num_examples, dtype=np.int64))
        .targets[0]
        .labels
    )
    return TermOutputs(
        values=np.eye(len(LABELS), dtype=np.float32)[tags], labels=labels, offsets=np.zeros(1, dtype=np.int64)
    )


def test_words_without_a_token_and_words_cut_off_count_as_o(tmp_path: Path, minilm: Path) -> None:
    sentences = [
        (["\u200b"], [1]),
        (["Eli", "sings", "in", "a", "red", "\u200b", "coat", "at", "night"], [1, 2, 0, 0, 0, 1, 2, 0, 1]),
    ]
    examples = examples_of(tmp_path, minilm, sentences, max_length=8)  # six tokens: Eli sings in a red coat
    decoded = examples.decode([outputs_for(examples, [1, 2, 0, 0, 0, 2])])
    assert decoded.predictions == [["O"], ["B-x", "I-x", "O", "O", "O", "O", "I-x", "O", "O"]]
    assert decoded.references == [["B-x"], ["B-x", "I-x", "O", "O", "O", "B-x", "I-x", "O", "B-x"]]
    # Right entities: (Eli sings); found:
    # that and (coat), which is not the whole of (<blank> coat); there are four.
    values = compute_metrics(
        ["entity_f1", "entity_precision", "entity_recall"], decoded.predictions, decoded.references
    )
    assert values == {
        "entity_f1": pytest.approx(1 / 3),
        "entity_precision": pytest.approx(1 / 2),
        "entity_recall": pytest.approx(1 / 4),
    }


def test_a_split_without_labels_is_predicted(tmp_path: Path, minilm: Path) -> None:
    examples = examples_of(tmp_path, minilm, [(["Eli", "sings"], [])], labelled=False)
    gathered = examples.gather(np.array([0]), np.array([0]))
    assert np.isnan(gathered.targets[0].labels).all() and gathered.targets[0].rows.tolist() == [1, 2]
    decoded = examples.decode([outputs_for(examples, [1, 0])])
    assert (decoded.predictions, decoded.references) == ([["B-x", "O"]], [[]])


def test_a_split_without_tokens_is_refused(tmp_path: Path, minilm: Path) -> None:
    with pytest.raises(DataError, match=r"^ner/train: no word has a token$"):
        examples_of(tmp_path, minilm, [(["\u200b"], [0])])


def test_entity_metrics_by_hand() -> None:
    labels = [["B-a", "I-a", "O", "B-b"], ["O", "B-a"]]
    # Whole entities count: (a 0-1) is found as (a 0-0), (b 3-3) is right, (a 1-1) has the wrong kind.
    predictions = [["B-a", "O", "O", "B-b"], ["O", "B-b"]]
    values = compute_metrics(["entity_f1", "entity_precision", "entity_recall"], predictions, labels)
    assert values == pytest.approx({"entity_f1": 1 / 3, "entity_precision": 1 / 3, "entity_recall": 1 / 3})
    assert compute_metrics(["entity_f1"], labels, labels) == {"entity_f1": 1.0}
    assert compute_metrics(["entity_f1"], [["O"]], [["O"]]) == {"entity_f1": 0.0}
    assert compute_metrics(["entity_precision"], [["O", "O"]], [["B-a", "O"]]) == {"entity_precision": 0.0}
