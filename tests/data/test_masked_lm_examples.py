"""Examples of masked_lm: which tokens are masked,
where their labels land, how documents are cut and paired. No model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.masked_documents import examples_of, write_corpus
from helpers.processes import ROOT
from helpers.tiny_encoders import write_tiny_encoder

from mtdnn_ds.config.errors import ConfigError, DataError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.batches.collate import ExampleSets, collate
from mtdnn_ds.data.cache.tokenize import load_tokenizer
from mtdnn_ds.data.examples import Gathered
from mtdnn_ds.data.examples.documents import DocumentExamples, cut_chunks
from mtdnn_ds.data.examples.masks import chosen_tokens, replaced
from mtdnn_ds.data.rows.documents import sentences
from mtdnn_ds.tasks.layout import head_layout
from mtdnn_ds.tasks.metrics import compute_metrics
from mtdnn_ds.tasks.resolve import resolve_tasks

CLS, SEP, MASK, UNK = 101, 102, 103, 100  # of the uncased vocabulary


def sequences(gathered: Gathered) -> list[list[int]]:
    return [part.tolist() for part in np.split(gathered.input_ids, np.cumsum(gathered.lengths)[:-1])]


def unmasked(gathered: Gathered) -> list[list[int]]:
    """The sequences with every label put back where it belongs."""
    ids = gathered.input_ids.copy()
    ids[gathered.targets[0].rows] = gathered.targets[0].labels.astype(np.int64)
    return [part.tolist() for part in np.split(ids, np.cumsum(gathered.lengths)[:-1])]


def all_of(examples: DocumentExamples, epoch: int = 0) -> Gathered:
    return examples.gather(np.arange(examples.num_examples), np.full(examples.num_examples, epoch))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.txt")


# Documents and sentences


def test_sentences_of_a_text() -> None:
    text = (
        'Mr. J. Smith paid 3.5 m. "Really?" she asked. Yes! '
        "(He did.) See e.g. Fig. 3.\r\n\nA line without an end\n  你好。再见！  "
    )
    assert sentences(text) == (
        "Mr. J. Smith paid 3.5 m.",
        ' "Really?" she asked.',
        " Yes!",
        " (He did.)",
        " See e.g. Fig. 3.",
        "A line without an end",
        "你好。",
        "再见！",
    )
    assert sentences(" \n ") == ()


def test_a_text_file_is_read_as_the_same_documents_in_jsonl(
    corpus: Path, minilm: Path, tmp_path: Path
) -> None:
    blocks = corpus.read_text().strip().split("\n\n\n")
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": block}) + "\n" for block in blocks))
    ours, theirs = examples_of(corpus, minilm), examples_of(tmp_path / "corpus.jsonl", minilm)
    assert ours.split.num_rows == 40
    np.testing.assert_array_equal(all_of(ours).input_ids, all_of(theirs).input_ids)
    # Rows are named by the line on which a document begins, and by the line of the jsonl file.
    lines = corpus.read_text().split("\n")
    assert [lines[row - 1].split()[0] for row in ours.split.source_rows] == [
        str(row - 1) for row in theirs.split.source_rows
    ]


def test_a_broken_line_of_a_text_file_is_named(minilm: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"One.\nTwo.\n\nThree.\n\xff\n\nFour.\n")
    with pytest.raises(DataError, match=r"1 of 3 rows cannot be used.*\n  line 5: not valid UTF-8"):
        examples_of(tmp_path / "bad.txt", minilm)


# Chunks


def test_chunks_by_hand() -> None:
    # Two documents: sentences of 3, 3, 9 tokens and of 4 tokens; room for 7.
    begins, ends = cut_chunks(np.array([0, 3, 6, 15, 19]), np.array([0, 15]), np.array([15, 19]), room=7)
    assert list(zip(begins.tolist(), ends.tolist(), strict=True)) == [(0, 6), (6, 13), (13, 15), (15, 19)]
    begins, ends = cut_chunks(np.array([0, 3, 6, 15, 19]), np.array([0, 15]), np.array([15, 19]), room=100)
    assert list(zip(begins.tolist(), ends.tolist(), strict=True)) == [(0, 15), (15, 19)]
    begins, _ = cut_chunks(
        np.array([0, 0, 2, 2]), np.array([0, 0, 2]), np.array([0, 2, 2]), room=5
    )  # texts and documents without tokens
    assert begins.tolist() == [0]


def test_chunks_are_the_documents_cut_at_sentences(corpus: Path, minilm: Path) -> None:
    examples, tokenizer = examples_of(corpus, minilm), load_tokenizer(str(minilm))
    expected = []
    for block in corpus.read_text().strip().split("\n\n\n"):
        chunk: list[int] = []
        for line in block.split("\n"):
            ids = tokenizer(line, add_special_tokens=False)["input_ids"]
            if chunk and len(chunk) + len(ids) > 30:
                expected.append(chunk)
                chunk = []
            chunk = chunk + ids
            while len(chunk) > 30:
                expected.append(chunk[:30])
                chunk = chunk[30:]
        expected += [chunk] if chunk else []
    gathered = all_of(examples)
    assert unmasked(gathered) == [[CLS, *chunk, SEP] for chunk in expected]
    assert examples.lengths.tolist() == [len(chunk) + 2 for chunk in expected] == gathered.lengths.tolist()
    assert max(examples.lengths) == 32


# Masks


def test_labels_stand_at_masked_places_only_also_after_packing(corpus: Path, minilm: Path) -> None:
    examples = examples_of(corpus, minilm)
    whole = unmasked(all_of(examples))
    order = np.array([5, 30, 2, 17, 9])
    batch = collate(
        np.zeros(5, dtype=np.int64),
        order,
        np.full(5, 3),
        ExampleSets(
            examples=[examples],
            tasks=[0],
            layout=head_layout([examples.spec]),
            filler_ids=np.array([CLS, SEP]),
        ),
    )
    targets = batch.targets["masked_token"]
    starts, rows = batch.cu_seqlens.tolist(), targets.rows.numpy()
    restored = batch.input_ids.clone()
    restored[targets.rows] = targets.labels.long()
    for place, example in enumerate(batch.sequence_examples.tolist()):
        assert restored[starts[place] : starts[place + 1]].tolist() == whole[order[example]]
    place_of_row = np.searchsorted(starts, rows, side="right") - 1
    assert batch.sequence_examples[place_of_row].tolist() == targets.examples[targets.groups.numpy()].tolist()
    assert batch.unit_counts.tolist() == [len(rows)] and len(set(rows.tolist())) == len(rows) > 10
    assert (batch.input_ids[targets.rows] == MASK).float().mean() > 0.5


def test_the_number_of_masked_tokens_is_exact_with_pieces(corpus: Path, minilm: Path) -> None:
    for rate in (0.15, 0.4):
        examples = examples_of(corpus, minilm, masking="piece", mask_rate=rate)
        per_example = np.bincount(all_of(examples).targets[0].examples, minlength=examples.num_examples)
        assert per_example.tolist() == [
            max(1, int(rate * (length - 2) + 0.5)) for length in examples.lengths.tolist()
        ]


def test_whole_words_are_masked_together(corpus: Path, minilm: Path) -> None:
    examples, tokenizer = examples_of(corpus, minilm), load_tokenizer(str(minilm))
    gathered = all_of(examples)
    chosen = np.zeros(len(gathered.input_ids), dtype=bool)
    chosen[gathered.targets[0].rows] = True
    several = 0
    at = 0
    for ids in unmasked(gathered):
        pieces, masked = tokenizer.convert_ids_to_tokens(ids), chosen[at : at + len(ids)]
        at += len(ids)
        for index in range(2, len(ids)):  # a chunk may begin inside a word
            if pieces[index].startswith("##"):
                assert masked[index] == masked[index - 1]
                several += bool(masked[index])
        number = max(1, int(0.15 * (len(ids) - 2) + 0.5))
        assert number - 2 <= masked.sum() <= max(number + 2, 4)  # a word has at most 4 pieces here
    assert several > 20
    single = all_of(examples_of(corpus, minilm, masking="piece"))
    assert single.input_ids.tolist() != gathered.input_ids.tolist()


def test_words_are_taken_in_drawn_order_until_the_number_is_reached() -> None:
    # One sequence of words of 3, 1, 2, 1, 1, 1, 1 tokens; 40 % of 10 are 4 tokens.
    starts = np.array([1, 0, 0, 1, 1, 0, 1, 1, 1, 1], dtype=bool)
    words = [range(0, 3), range(3, 4), range(4, 6), range(6, 7), range(7, 8), range(8, 9), range(9, 10)]
    seen = set()
    for key in range(300):
        keys = np.array([key * 0x9E3779B97F4A7C15 % 2**64], dtype=np.uint64)
        chosen = set(
            chosen_tokens(
                keys, np.zeros(10, dtype=np.int64), np.arange(10), starts, np.ones(10, dtype=bool), 0.4
            ).tolist()
        )
        whole = [word for word in words if chosen.issuperset(word)]
        assert sum(len(word) for word in whole) == len(chosen) and 3 <= len(chosen) <= 5
        seen.add(len(chosen))
    assert seen == {3, 4, 5}


def test_special_tokens_are_never_masked(minilm: Path, tmp_path: Path) -> None:
    text = "The [MASK] and the [SEP] of 𓂀 stay as they are here.\n\n𓂀 𓂀\n"
    (tmp_path / "odd.txt").write_text(text)
    examples = examples_of(tmp_path / "odd.txt", minilm, mask_rate=0.9, masking="piece")
    for epoch in range(20):
        labels = all_of(examples, epoch).targets[0]
        first = labels.labels[labels.examples == 0]
        assert len(first) == 9 and not set(first.astype(int)) & {0, UNK, CLS, SEP, MASK}  # of 10
        assert set(labels.labels[labels.examples == 1].astype(int)) == {
            UNK
        }  # nothing else is there to predict


def test_80_10_10() -> None:
    ordinary = np.arange(1000, 6000)
    keys = np.repeat(np.arange(200, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15), 500)
    ids = np.full(100_000, 7)
    shown = replaced(ids, keys, np.tile(np.arange(500), 200), mask_id=3, ordinary_ids=ordinary)
    for share, expected in (
        ((shown == 3).mean(), 0.8),
        ((shown >= 1000).mean(), 0.1),
        ((shown == 7).mean(), 0.1),
    ):
        assert abs(share - expected) < 0.005  # standard errors 0.0013 and 0.0009
    drawn = shown[shown >= 1000]
    assert set(drawn) <= set(ordinary) and len(set(drawn)) > 4000  # of 5000, in 10,000 draws: 4,323 expected
    assert abs(drawn.mean() - 3499.5) < 60  # standard error 14


def test_every_place_is_masked_equally_often(minilm: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text(" ".join(["the"] * 20) + "\n")
    examples = examples_of(tmp_path / "one.txt", minilm)
    rows = np.concatenate([all_of(examples, epoch).targets[0].rows for epoch in range(3000)])
    counts = np.bincount(rows, minlength=22)
    assert counts[0] == counts[21] == 0 and counts.sum() == 9000
    assert np.abs(counts[1:21] - 450).max() < 90  # standard error 20


def test_masks_are_new_in_every_epoch_and_the_same_again_whatever_they_are_gathered_with(
    corpus: Path, minilm: Path
) -> None:
    for options in ({}, {"next_sentence": True}):
        examples = examples_of(corpus, minilm, **options)
        first, second = all_of(examples, 0), all_of(examples, 1)
        assert (
            first.input_ids.tolist() != second.input_ids.tolist()
            and first.lengths.tolist() == second.lengths.tolist()
        )
        different = sum(a != b for a, b in zip(sequences(first), sequences(second), strict=True))
        assert different > 0.9 * examples.num_examples
        alone = examples.gather(np.array([11]), np.array([1]))
        assert sequences(alone)[0] == sequences(second)[11]
        assert (
            sequences(examples_of(corpus, minilm, **options).gather(np.array([3, 11]), np.array([0, 1])))[1]
            == sequences(second)[11]
        )
        assert (
            all_of(examples_of(corpus, minilm, seed=1, **options)).input_ids.tolist()
            != first.input_ids.tolist()
        )


def test_a_tokenizer_without_a_mask_token_is_refused(corpus: Path, minilm: Path, tmp_path: Path) -> None:
    folder = write_tiny_encoder(tmp_path / "tiny", minilm)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "special_tokens_map.json").unlink()
    settings["mask_token"] = None
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        ConfigError, match=r"tasks.text: the tokenizer has no mask token, which masked_lm needs"
    ):
        examples_of(corpus, folder)


# Next sentence


def tokens_of(minilm: Path, corpus: Path) -> list[list[list[int]]]:
    tokenizer = load_tokenizer(str(minilm))
    blocks = corpus.read_text().strip().split("\n\n\n")
    return [
        [tokenizer(line, add_special_tokens=False)["input_ids"] for line in block.split("\n")]
        for block in blocks
    ]


def test_second_segments_follow_or_come_from_another_document(corpus: Path, minilm: Path) -> None:
    examples, documents = examples_of(corpus, minilm, next_sentence=True), tokens_of(minilm, corpus)
    flat = [[token for sentence in document for token in sentence] for document in documents]
    labels = []
    for epoch in range(6):
        gathered = all_of(examples, epoch)
        assert gathered.lengths.tolist() == examples.lengths.tolist() and max(examples.lengths) <= 32
        types = np.split(gathered.token_type_ids, np.cumsum(gathered.lengths)[:-1])
        for index, ids in enumerate(unmasked(gathered)):
            middle = int(np.flatnonzero(types[index])[0])
            first, second = ids[1 : middle - 1], ids[middle:-1]
            assert ids[0] == CLS and ids[middle - 1] == ids[-1] == SEP and first and second
            own = int(np.searchsorted(examples.split.source_rows, examples.source_row(index)))
            label = int(gathered.targets[1].labels[index])
            if label == 0:
                assert contains(flat[own], first + second)
            else:
                assert contains(flat[own], first)
                others = [
                    other
                    for other in range(40)
                    if other != own and begins_at_a_sentence(documents[other], second)
                ]
                assert others, "a random segment begins with a sentence of another document"
            labels.append(label)
    assert gathered.targets[1].rows.tolist() == list(range(examples.num_examples))
    assert abs(np.mean(labels) - 0.5) < 0.06, len(labels)  # standard error 0.02 at 500 examples


def contains(document: list[int], part: list[int]) -> bool:
    return any(document[start : start + len(part)] == part for start in range(len(document) - len(part) + 1))


def begins_at_a_sentence(document: list[list[int]], part: list[int]) -> bool:
    tails = [[token for sentence in document[start:] for token in sentence] for start in range(len(document))]
    return any(tail[: len(part)] == part for tail in tails)


def test_pairs_are_cut_at_every_end_of_a_sentence(minilm: Path, tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("one two.\nthree four.\nfive six.\nseven eight.\n\n" + "nine " * 40)
    examples = examples_of(tmp_path / "two.txt", minilm, next_sentence=True)
    cuts = []
    for epoch in range(600):
        types = examples.gather(np.array([0]), np.array([epoch])).token_type_ids
        cuts.append(int(np.flatnonzero(types)[0]) - 2)
    assert {cut: abs(cuts.count(cut) - 200) < 45 for cut in sorted(set(cuts))} == {
        3: True,
        6: True,
        9: True,
    }  # standard error 12


def test_where_no_other_document_is_long_enough_the_segment_stays(minilm: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(
        "one two three four five six.\nseven eight nine ten eleven twelve.\n\nshort one.\n"
    )
    examples = examples_of(tmp_path / "long.txt", minilm, next_sentence=True)
    labels = np.array([all_of(examples, epoch).targets[1].labels for epoch in range(40)])
    assert (labels[:, 0] == 0).all()  # its second segment has 7 tokens, the other document 3
    assert 0 < labels[:, 1].sum() < 40


def test_next_sentence_needs_two_documents(minilm: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("One.\nTwo.\nThree.\n")
    with pytest.raises(
        DataError,
        match=(
            r"tasks.text: train: next_sentence takes random segments from other documents, "
            r"and there is only one"
        ),
    ):
        examples_of(tmp_path / "one.txt", minilm, next_sentence=True)


def test_real_articles(official_files: Path, minilm: Path, tmp_path: Path) -> None:
    (tmp_path / "articles.jsonl").symlink_to(official_files / "wiki/articles.jsonl")
    examples = examples_of(tmp_path / "articles.jsonl", minilm, max_length=128, next_sentence=True)
    gathered = all_of(examples)
    share = len(gathered.targets[0].rows) / (gathered.lengths.sum() - 3 * examples.num_examples)
    assert abs(share - 0.15) < 0.003 and abs(gathered.targets[1].labels.mean() - 0.5) < 0.07
    assert (gathered.input_ids[gathered.targets[0].rows] == MASK).mean() == pytest.approx(0.8, abs=0.02)


# Settings


def problems_of(**settings: Any) -> list[str]:
    task = {"kind": "masked_lm", "files": {"train": "recipes/text/train.txt"}, **settings}
    recipe = Recipe.model_validate({"encoder": {"path": "x"}, "tasks": {"text": task}, "train": {"steps": 1}})
    with pytest.raises(ConfigError) as refused:
        resolve_tasks(recipe)
    return list(refused.value.problems)


def test_settings_without_effect_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert problems_of(
        dropout=0.1, text_columns=["text"], metrics=["masked_accuracy", "next_sentence_accuracy"]
    ) == [
        "tasks.text.text_columns: has no effect on .txt files, which have no columns; remove it",
        (
            "tasks.text.metrics: 'next_sentence_accuracy' needs tasks.text.next_sentence: true; "
            "remove the metric, or set it"
        ),
        "tasks.text.dropout: has no effect on a masked_lm, whose head has none; remove it",
    ]
    assert problems_of(label_column="x", labels=["a", "b"], metrics=["accuracy"]) == [
        "tasks.text.labels: a masked_lm has no label names; remove the key",
        "tasks.text.label_column: a masked_lm makes its own labels; remove the key",
        "tasks.text.metrics: metric 'accuracy' is for classification, "
        "multiple_choice, ranking; this task is masked_lm, "
        "use masked_accuracy, next_sentence_accuracy",
    ]
    assert problems_of(files={"train": "recipes/own_task/train.csv"}) == [
        "tasks.text.text_columns: missing; every task of your own needs it"
    ]


def test_metrics_of_both_terms() -> None:
    predictions, labels = (
        [np.array([5, 6, 7, 8]), np.array([0, 1])],
        [np.array([5, 6, 0, 0], np.float32), np.array([0, 0], np.float32)],
    )
    assert compute_metrics(["masked_accuracy", "next_sentence_accuracy"], predictions, labels) == {
        "masked_accuracy": 0.5,
        "next_sentence_accuracy": 0.5,
    }
