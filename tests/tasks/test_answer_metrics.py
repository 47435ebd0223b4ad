"""Scores of answers, by hand: SQuAD 1.1 and 2.0, CoQA, QuAC;
and the span that comes closest to a free answer.
"""

from __future__ import annotations

import pytest

from mtdnn_ds.data.rows.answer_spans import best_span, trimmed
from mtdnn_ds.tasks.answer_metrics import coqa_f1, exact_match, normalised, quac_f1, text_f1, token_f1
from mtdnn_ds.tasks.metrics import compute_metrics


def test_normalisation_is_that_of_the_official_scripts() -> None:
    assert normalised(" The  U.S. (an example), a test\tand 'another'. ") == "us example test and another"
    assert normalised("theatre Anna a.b.c") == "theatre anna abc"  # articles are whole words
    assert normalised("“Über” — the") == "“über” —"  # only ASCII punctuation goes


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("the Denver Broncos!", "Denver Broncos", 1.0),
        ("Denver", "Denver Broncos", 2 / 3),  # precision 1, recall 1/2
        ("in Denver in Colorado", "in Denver", 2 / 3),  # precision 2/4, recall 1: "in" counts once
        ("Carolina", "Denver", 0.0),
        ("", "Denver", 0.0),
        ("the", "", 1.0),  # no word on either side
    ],
)
def test_f1_of_two_texts(prediction: str, answer: str, expected: float) -> None:
    assert text_f1(prediction, answer) == pytest.approx(expected)


def test_squad_scores_take_the_best_human_answer_and_know_no_answer() -> None:
    predictions = ["Santa Clara", "the stadium", "", "gold", ""]
    references = [
        ["Santa Clara, California", "Santa Clara"],
        ["Levi's Stadium", "Levi's Stadium in Santa Clara"],
        [],
        [],
        ["gold"],
    ]
    # Exact: yes, no, right to say nothing, wrong to answer, wrong to say nothing.
    assert exact_match(predictions, references) == pytest.approx(2 / 5)
    # "stadium" against "levis stadium": precision 1, recall 1/2.
    assert token_f1(predictions, references) == pytest.approx((1 + 2 / 3 + 1 + 0 + 0) / 5)
    assert compute_metrics(("exact_match", "token_f1"), predictions, references) == {
        "exact_match": pytest.approx(0.4),
        "token_f1": pytest.approx((2 + 2 / 3) / 5),
    }


def test_a_human_answer_that_is_an_article_counts_as_no_answer() -> None:
    assert (exact_match(["", "b"], [["A"], ["A", "b"]]), token_f1(["", "b"], [["A"], ["A", "b"]])) == (
        1.0,
        1.0,
    )


def test_coqa_leaves_each_person_out_in_turn() -> None:
    # "white cat" scores 1 with "white cat", 2/3 with "white", 0 with "black".
    # Without the first: 2/3; without another: 1.
    assert coqa_f1(["white cat"], [["white cat", "white", "black"]]) == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert coqa_f1(["white cat"], [["white"]]) == pytest.approx(2 / 3)  # one person: no one is left out
    assert coqa_f1(["No.", "unknown"], [["no", "no", "yes", "no"], ["unknown"]]) == pytest.approx(
        1.0
    )  # people who disagree cost nothing here


def test_quac_votes_on_no_answer_and_leaves_out_disagreement() -> None:
    cannot = "CANNOTANSWER"
    assert quac_f1([cannot], [[cannot, "in 1983", cannot, "in May"]]) == 1.0  # a tie is no answer
    assert quac_f1(["in 1983"], [[cannot, "in 1983", cannot, "in May"]]) == 0.0
    # Two of three gave a span: the vote drops CANNOTANSWER, and each of the two is left out in turn:
    # (1/2 + 1) / 2 with 1/2 = 2 * 1 / 4.
    assert quac_f1(["in 1983"], [[cannot, "in 1983", "in May"]]) == pytest.approx((0.5 + 1) / 2)
    # The second question's people have no word in common, so it does not count.
    assert quac_f1(["in 1983", "he left"], [["in 1983"], ["red", "green", "blue"]]) == 1.0
    assert quac_f1(["he left"], [["red", "green"]]) == 0.0  # no question is left


def test_texts_without_words_have_nothing_in_common_in_quac_alone() -> None:
    # "The." and "a" normalise to nothing. QuAC's scorer counts common words and returns 0 without any.
    assert quac_f1(["The."], [["a"]]) == 0.0
    # In CoQA's (evaluate-v1.0, compute_f1) and SQuAD's (evaluate-v2.0) two empty texts are equal.
    assert coqa_f1(["The."], [["a"]]) == 1.0
    assert token_f1(["The."], [["a"]]) == 1.0
    # Nor do people agree by them: both answers of the first question score 0 with each other, so it does not
    # count, and the second alone is left.
    assert quac_f1(["in May", "in May"], [["the", "a"], ["in May"]]) == 1.0


def test_the_closest_span_to_a_free_answer() -> None:
    story = 'She saw "the little white kitten", and a white cat. It was white.'

    def closest(answer: str, start: int = 0, end: int = len(story)) -> str | None:
        span = best_span(story, answer, start, end)
        return None if span is None else story[span[0] : span[1]]

    assert closest("A white kitten!") == "white kitten"
    assert closest("the kitten was white") == "white kitten"  # 4/5; "kitten ... white" is longer
    assert closest("white") == "white" and best_span(story, "white", 0, len(story)) == (
        20,
        25,
    )  # the first of three
    assert closest("white", 40, len(story)) == "white" and best_span(story, "white", 40, len(story)) == (
        41,
        46,
    )
    assert closest("kitten") == "kitten"  # without the marks around it
    assert closest("seven") is None
    assert trimmed("  a b ", 0, 6) == (2, 5)
