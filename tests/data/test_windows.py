"""Windows equal transformers' own, spans map to characters and back,
and answers are decoded from scores as by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cached_rows import write_roberta_tokenizer
from helpers.question_tasks import made, span_task, squad, talk_task, task, write

from mtdnn_ds.config.errors import ConfigError, TrainingError
from mtdnn_ds.data.cache.tokenize import load_tokenizer
from mtdnn_ds.data.examples import Examples, TermOutputs
from mtdnn_ds.data.examples.span_scores import best_spans, first_best
from mtdnn_ds.tasks.layout import ANSWER_TYPES


def sequences(examples: Examples) -> list[tuple[list[int], list[int], list[float]]]:
    """ids, types and labels of every example, gathered in a mixed order."""
    order = np.random.default_rng(0).permutation(examples.num_examples)
    gathered = examples.gather(order, np.zeros_like(order))
    assert gathered.lengths.tolist() == examples.lengths[order].tolist()
    ends = np.cumsum(gathered.lengths)
    result: list[Any] = [None] * len(order)
    for example, end, length in zip(order, ends, gathered.lengths, strict=True):
        here = slice(end - length, end)
        result[example] = tuple(
            values[here].tolist()
            for values in (gathered.input_ids, gathered.token_type_ids, gathered.targets[0].labels)
        )
    return result


@pytest.mark.parametrize(("max_length", "stride"), [(96, 24), (128, None), (384, 128)])
def test_windows_and_labels_equal_transformers_on_real_questions(
    max_length: int, stride: int | None, real_data: Path, minilm: Path, tmp_path: Path
) -> None:
    data = json.loads((real_data / "SQuAD/dev-v2.0-sample.json").read_text())
    data["data"] = [{"title": "x", "paragraphs": article["paragraphs"][:6]} for article in data["data"]]
    path = write(tmp_path / "train.json", data)
    settings = {} if stride is None else {"stride": stride}
    ours = sequences(
        made(span_task(path, null_threshold=0.0, **settings), minilm, tmp_path / "cache", max_length)
    )
    tokenizer = load_tokenizer(str(minilm))
    theirs = []
    for article in data["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                encoded = tokenizer(
                    asked["question"],
                    paragraph["context"],
                    truncation="only_second",
                    max_length=max_length,
                    stride=max_length // 3 if stride is None else stride,
                    return_overflowing_tokens=True,
                    return_offsets_mapping=True,
                )
                for window in range(len(encoded["input_ids"])):
                    labels = labels_as_run_qa(encoded, window, asked["answers"])
                    theirs.append((encoded["input_ids"][window], encoded["token_type_ids"][window], labels))
    assert len(ours) == len(theirs) > 150
    assert ours == theirs


def test_windows_of_byte_level_tokens_equal_transformers(tmp_path: Path) -> None:
    """RoBERTa's template with four special tokens, and characters that are several tokens each."""
    encoder = write_roberta_tokenizer(tmp_path / "tok")
    context = "Größe 🙂🙂 und Länge: " + "ä1 " * 30 + "🙂."
    asked = [
        {"question": text, "answers": [{"text": text, "answer_start": context.index(text)}]}
        for text in ("Größe", "🙂", "🙂🙂 und L", "🙂.")
    ]
    examples = made(
        span_task(write(tmp_path / "train.json", squad(*asked, context=context)), stride=10),
        encoder,
        tmp_path / "cache",
        64,
    )
    tokenizer = load_tokenizer(str(encoder))
    ours, theirs = [ids for ids, _, _ in sequences(examples)], []
    for each in asked:
        encoded = tokenizer(
            each["question"],
            context,
            truncation="only_second",
            max_length=64,
            stride=10,
            return_overflowing_tokens=True,
        )
        theirs += encoded["input_ids"]
    assert ours == theirs and len(ours) > 8
    starts, ends = examples.windows.characters_of(np.arange(4), *examples.answers)
    assert [context[start:end] for start, end in zip(starts, ends, strict=True)] == [
        each["question"] for each in asked
    ]


def labels_as_run_qa(encoded: Any, window: int, answers: list[dict[str, Any]]) -> list[float]:
    """Start (1) and end (2) as transformers' examples/pytorch/question-answering/run_qa.py chooses them:
    CLS unless the window holds the answer.
    """
    offsets, owners = encoded["offset_mapping"][window], encoded.sequence_ids(window)
    labels = [0.0] * len(offsets)
    context = [index for index, owner in enumerate(owners) if owner == 1]
    first = last = 0
    if answers:
        start, end = answers[0]["answer_start"], answers[0]["answer_start"] + len(answers[0]["text"])
        if offsets[context[0]][0] <= start and offsets[context[-1]][1] >= end:
            first = max(index for index in context if offsets[index][0] <= start)
            last = min(index for index in context if offsets[index][1] >= end)
    labels[first] += 1
    labels[last] += 2
    return labels


def test_a_long_question_is_cut_to_half_the_room(minilm: Path, tmp_path: Path) -> None:
    long = " ".join(["why"] * 50)
    asked = [{"question": long, "answers": [{"text": "1843", "answer_start": 31}]}]
    (window,) = sequences(
        made(span_task(write(tmp_path / "train.json", squad(*asked))), minilm, tmp_path / "cache", 31)
    )
    tokenizer = load_tokenizer(str(minilm))
    # 28 tokens of room: 14 of the question, and all 9 of the context.
    assert (
        tokenizer.decode(window[0])
        == "[CLS] " + " ".join(["why"] * 14) + " [SEP] ada wrote the first program in 1843. [SEP]"
    )
    talk = {"id": "s", "story": "Ada wrote.", "questions": [{"input_text": f"{long} Who?"}]}
    talk["answers"] = [{"span_start": 0, "span_end": 3, "span_text": "Ada", "input_text": "Ada"}]
    (window,) = sequences(
        made(talk_task(write(tmp_path / "talk.json", {"data": [talk]})), minilm, tmp_path / "cache", 31)
    )
    assert tokenizer.decode(window[0]).startswith(
        "[CLS] " + " ".join(["why"] * 12) + " who? [SEP]"
    )  # the question itself stays


def test_a_stride_that_does_not_fit_is_refused(minilm: Path, tmp_path: Path) -> None:
    path = write(
        tmp_path / "train.json", squad({"question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]})
    )
    with pytest.raises(ConfigError) as caught:
        made(span_task(path, stride=63), minilm, tmp_path / "cache", 128)
    assert str(caught.value) == (
        "tasks.mine.stride=63: windows of encoder.max_length=128 hold as few as 63 tokens of the context; "
        "make it less than that"
    )


def test_unanswerable_questions_need_a_threshold(minilm: Path, tmp_path: Path) -> None:
    asked = [
        {"question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]},
        {"question": "Where?", "answers": []},
    ]
    with pytest.raises(
        ConfigError,
        match=r"^tasks.mine.null_threshold: missing; 1 of 2 questions of train have no answer, and without",
    ):
        made(span_task(write(tmp_path / "train.json", squad(*asked))), minilm, tmp_path / "cache", 64)


def test_characters_are_those_of_the_original_context(minilm: Path, tmp_path: Path) -> None:
    """Accents, capitals, emoji of two code units and control characters,
    which the tokenizer changes or drops.
    """
    context = "Größe: \U0001f600\x00 L'École\u200d  Normale — fondée en 1794."
    answers = ["L'École\u200d  Normale", "\U0001f600", "1794."]
    asked = [
        {"question": "?", "answers": [{"text": text, "answer_start": context.index(text)}]}
        for text in answers
    ]
    examples = made(
        span_task(write(tmp_path / "train.json", squad(*asked, context=context))),
        minilm,
        tmp_path / "cache",
        64,
    )
    starts, ends = examples.windows.characters_of(np.arange(3), *examples.answers)
    assert [context[start:end] for start, end in zip(starts, ends, strict=True)] == answers


# Decoding


def test_the_best_span_by_hand() -> None:
    # Two windows: CLS, one token of the question, SEP, context tokens, SEP. Only the context is searched.
    first = [(99, 99), (99, 99), (99, 99), (1, 0), (5, 1), (0, 3), (2, 9), (99, 99)]
    second = [(99, 99), (99, 99), (99, 99), (1, 7), (4, 0), (99, 99)]
    third = [(99, 99), (99, 99), (99, 99), (99, 99)]  # no context at all
    scores = np.array([*first, *second, *third], dtype=np.float32)
    offsets, starts, lengths = np.array([0, 8, 14, 18]), np.array([3, 3, 3]), np.array([4, 2, 0])
    best = best_spans(scores, offsets, starts, lengths, max_answer_tokens=30)
    # 5 + 9 = 14 from token 1 to 3; 1 + 7 = 8 for token 0 alone: 4 + 7 would end before it starts.
    assert (best.first.tolist(), best.last.tolist(), best.scores.tolist()) == (
        [1, 0, -1],
        [3, 0, -1],
        [14, 8, -np.inf],
    )
    short = best_spans(scores, offsets, starts, lengths, max_answer_tokens=2)
    assert (short.first.tolist()[:2], short.last.tolist()[:2], short.scores.tolist()[:2]) == (
        [3, 0],
        [3, 0],
        [11, 8],
    )
    with pytest.raises(TrainingError, match="not finite: the model has diverged"):
        best_spans(np.where(scores == 9, np.nan, scores), offsets, starts, lengths, 30)


def test_the_best_span_equals_a_search_of_all_pairs() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 40, size=60)
    offsets = np.concatenate(([0], np.cumsum(lengths + 3)))
    scores = random.integers(-9, 9, size=(offsets[-1], 2)).astype(np.float32)  # with ties
    best = best_spans(scores, offsets, np.full(60, 2), lengths, max_answer_tokens=7)
    for window, length in enumerate(lengths):
        own = scores[offsets[window] + 2 : offsets[window] + 2 + length]
        pairs = [(own[i, 0] + own[j, 1], -j, i) for j in range(length) for i in range(max(0, j - 6), j + 1)]
        score, minus_last, first = max(pairs)
        assert (best.first[window], best.last[window], best.scores[window]) == (first, -minus_last, score)


def test_the_first_of_equal_windows_is_taken() -> None:
    assert first_best(np.array([1, 3, 3, 2, 0, 0]), np.array([4, 2])).tolist() == [1, 4]


def outputs(rows: list[list[tuple[float, float]]]) -> TermOutputs:
    values = np.array([pair for window in rows for pair in window], dtype=np.float32)
    return TermOutputs(
        values=values, labels=np.zeros(len(values), np.float32), offsets=np.cumsum([0, *map(len, rows)])
    )


def scored(examples: Any, spans: list[dict[str, tuple[int, int, float]]]) -> TermOutputs:
    """Scores that are 0 but for some tokens:
    {"span": (first, last context token of the window, score of each), "null": ...} for each window.
    """
    rows = []
    for window, wanted in enumerate(spans):
        pairs = np.zeros((int(examples.lengths[window]), 2))
        if "span" in wanted:
            first, last, score = wanted["span"]
            begin = int(examples.windows.context_starts[window])
            pairs[begin + first, 0] += score
            pairs[begin + last, 1] += score
        pairs[0] += wanted.get("null", 0)
        rows.append([tuple(pair) for pair in pairs])
    return outputs(rows)


def test_a_question_is_answered_from_all_its_windows(minilm: Path, tmp_path: Path) -> None:
    context = "One two three four five six seven eight nine ten eleven twelve thirteen fourteen."
    asked = [
        {
            "question": "A?",
            "answers": [{"text": "two", "answer_start": 4}, {"text": "One two", "answer_start": 0}],
        },
        {"question": "B?", "answers": []},
    ]
    path = write(tmp_path / "train.json", squad(*asked, context=context))
    plain = made(span_task(path, null_threshold=1e9, stride=2), minilm, tmp_path / "cache", 14)
    # 9 context tokens a window, 2 shared: 0-8, 7-14 of each question.
    assert plain.windows.begins.tolist() == [0, 7, 0, 7] and plain.windows.ends.tolist() == [9, 15, 9, 15]
    low_high = [{"span": (0, 1, 3.0)}, {"span": (3, 4, 4.0), "null": 9.0}]
    scores = scored(plain, [*low_high, {"span": (2, 2, 5.0)}, {"null": 6.0}])
    decoded = plain.decode([scores])
    assert decoded.predictions == ["eleven twelve", "three"]
    assert decoded.references == [["two", "One two"], []]
    # Null scores are the lowest of the question's windows: 0 and 0, although one window says 18 and 12.
    strict = made(span_task(path, null_threshold=-9.0, stride=2), minilm, tmp_path / "cache", 14)
    # 0 - 8 > -9: no answer; 0 - 10 > -9 is false.
    assert strict.decode([scores]).predictions == ["", "three"]


def test_a_conversation_is_answered_from_its_most_knowing_window(minilm: Path, tmp_path: Path) -> None:
    context = "One two three four five six seven eight nine ten eleven twelve thirteen fourteen."
    answers = ["two", "Yes", "unknown"]
    spans = [(4, 7), (4, 13), (-1, -1)]
    talk = {
        "id": "s",
        "story": context,
        "questions": [{"input_text": "A?"}] * 3,
        "answers": [
            {"input_text": text, "span_start": start, "span_end": end}
            for text, (start, end) in zip(answers, spans, strict=True)
        ],
    }
    spec = talk_task(write(tmp_path / "train.json", {"data": [talk]}), stride=2, history_turns=0)
    examples = made(spec, minilm, tmp_path / "cache", 14)
    span, yes, _, unknown = range(4)
    assert ANSWER_TYPES == ("span", "yes", "no", "unknown")
    assert examples.types_E.tolist() == [span, unknown, yes, unknown, unknown, unknown]
    labels = [window[2] for window in sequences(examples)]
    # "two" is the context's second token, behind CLS, "a", "?", SEP;
    # yes has no span; where there is none, both are CLS.
    assert [(window.index(max(window)), max(window)) for window in labels] == [
        (5, 3.0),
        (0, 3.0),
        (0, 3.0),
        (0, 3.0),
        (0, 3.0),
        (0, 3.0),
    ]
    type_scores = np.array(
        [
            [0, 0, 0, 1],  # log-odds against unknown: log 3 - 1
            [0, 3, 4, 3],  # log(1 + e^3 + e^4) - 3 is more: no
            [2, 0, 0, 0],  # log(e^2 + 2) - 0: a span
            [0, 0, 0, 0],
            [0, 0, 0, 5],
            [1, 0, 0, 4],  # more than the other, and still unknown
        ],
        dtype=np.float32,
    )
    types = TermOutputs(values=type_scores, labels=np.zeros(6, np.float32), offsets=np.arange(7))
    wanted: list[dict[str, Any]] = [{}, {}, {"span": (1, 2, 1.0)}, {"span": (3, 3, 9.0)}, {}, {}]
    decoded = examples.decode([scored(examples, wanted), types])
    assert decoded.predictions == [
        "no",
        "two three",
        "unknown",
    ]  # the second's span is of its own window, though another's is higher
    assert decoded.references == [["two"], ["Yes"], ["unknown"]]


def test_quac_answers_are_always_pieces_of_the_text(real_data: Path, minilm: Path, tmp_path: Path) -> None:
    spec = task({}, {"quac_dir": str(real_data / "QuAC")}, name="quac")
    examples = made(spec, minilm, tmp_path / "cache", 384, "dev")
    spans = scored(examples, [{"span": (0, 2, 1.0)}] * examples.num_examples)
    kinds = np.zeros((examples.num_examples, 4), dtype=np.float32)
    kinds[:, ANSWER_TYPES.index("yes")] = 2
    types = TermOutputs(
        values=kinds, labels=np.zeros(len(kinds), np.float32), offsets=np.arange(len(kinds) + 1)
    )
    assert examples.decode([spans, types]).predictions[0] == "In May 1983"
    kinds[:, ANSWER_TYPES.index("unknown")] = 3
    assert set(examples.decode([spans, types]).predictions) == {"CANNOTANSWER"}
