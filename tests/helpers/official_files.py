"""Generated GLUE, SNLI, WNUT-17, SQuAD, CoQA, QuAC and Wikipedia files in the official layouts, with the real
files' traps. Not a test file.

The layouts are those of ../shared/data, file by file, so that a test reads either. Traps: MRPC's byte order
mark and its quotes that are no CSV quoting, CoLA without a header, 12 columns of MNLI with the label in the
last, SNLI's rows without agreement (`-`), blanks before tabs, accents, unanswerable questions, several
answers to one, an answer that stands twice. The texts mean little; their lengths vary as in GLUE.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SUBJECTS = [
    "the old man",
    "a woman in red",
    "our friends",
    "the café owner",
    "two children",
    "the sailors",
    "Naïve readers",
    "the committee",
    "a dog",
    "the president",
]
VERBS = [
    "sees",
    "does not like",
    "bought",
    "has never heard of",
    "wrote about",
    "carries",
    "won't sell",
    "looked for",
    "remembers",
    "paints",
]
OBJECTS = [
    "the harbour",
    "a blue car",
    "three letters",
    "the weather in Varna",
    "an honest answer",
    "his bicycle",
    "the long winter",
    "no money at all",
    "music",
    "the new rights",
]
ENDS = [
    "",
    "in the morning",
    "because it was raining",
    ", let alone the next one we propose",
    "after the company had reported its results",
    "without a word to anybody who might have asked",
    "when the ships came back from the south , as they do every year",
]
ENTITIES = (
    ("person", "Maria Stone"),
    ("location", "Burgas"),
    ("group", "The Harbour Band"),
    ("product", "Windows 7"),
)
ENTITY_TYPES = ("corporation", "creative-work", "group", "location", "person", "product")
MNLI_HEAD = (
    "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse "
    "sentence2_parse sentence1 sentence2 label1 gold_label"
)
SNLI_HEAD = (
    "index captionID pairID sentence1_binary_parse sentence2_binary_parse sentence1_parse "
    "sentence2_parse sentence1 sentence2 label1 gold_label"
)
STSB_HEAD = "index genre filename year old_index source1 source2 sentence1 sentence2 score"
TRAIN_ROWS, DEV_ROWS = 400, 120
TEST_ROWS = {"CoLA": 1_063, "MRPC": 1_725, "RTE": 3_000, "STS-B": 1_379}  # of the official files


class Texts:
    """Sentences from a seed of their own."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def pick(self, words: Sequence[Any]) -> Any:
        return words[int(self.random.integers(len(words)))]

    def sentence(self, clauses: int | None = None) -> str:
        """One clause, or now and then several."""
        count = clauses or int(self.random.choice([1, 1, 1, 2, 3]))
        parts = [
            f"{self.pick(SUBJECTS)} {self.pick(VERBS)} {self.pick(OBJECTS)} {self.pick(ENDS)}".strip()
            for _ in range(count)
        ]
        text = " and ".join(parts)
        return text[0].upper() + text[1:] + " ."

    def paragraph(self, sentences: int) -> str:
        return " ".join(self.sentence() for _ in range(sentences))


def write_official_files(folder: Path) -> Path:
    """All files, in the layout of ../shared/data; the same bytes every time."""
    glue = folder / "glue"
    for name, writer in GLUE_WRITERS.items():
        (glue / name).mkdir(parents=True)
        writer(glue / name)
    write_snli(folder / "SNLI")
    write_conll(folder / "WNUT17")
    write_squad(folder / "SQuAD")
    write_conversations(folder)
    write_articles(folder / "wiki")
    return folder


def write_lines(path: Path, lines: Iterable[str], *, mark: bool = False) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig" if mark else "utf-8")


def split_files(*dev: str) -> tuple[tuple[str, int], ...]:
    return (("train", TRAIN_ROWS), *((name, DEV_ROWS) for name in (dev or ("dev",))))


def write_cola(folder: Path) -> None:
    texts = Texts(1)
    for split, rows in split_files():
        write_lines(
            folder / f"{split}.tsv",
            (f"gj04\t{row % 3 > 0:d}\t{'' if row % 3 else '*'}\t{texts.sentence(1)}" for row in range(rows)),
        )
    rows = TEST_ROWS["CoLA"]
    write_lines(
        folder / "test.tsv", ["index\tsentence", *(f"{row}\t{texts.sentence(1)}" for row in range(rows))]
    )


def write_sst2(folder: Path) -> None:
    texts = Texts(2)
    for split, rows in split_files():
        lines = (f"{texts.sentence().lower()} \t{row % 2}" for row in range(rows))
        write_lines(folder / f"{split}.tsv", ["sentence\tlabel", *lines])


def write_mrpc(folder: Path) -> None:
    texts = Texts(3)

    def pair(row: int) -> str:
        first = texts.sentence()
        second = first if row % 5 == 0 else texts.sentence()
        if row % 4 == 0:
            first = f'"{first}'  # the quote is never closed
        if row % 4 == 1:
            first, second = f'He said: "{first}"', f'""{second}'
        return f"{1000 + row}\t{2000 + row}\t{first}\t{second}"

    columns = "#1 ID\t#2 ID\t#1 String\t#2 String"
    for split, rows in (("train", TRAIN_ROWS), ("dev", 408)):
        lines = (f"{row % 5 < 3:d}\t{pair(row)}" for row in range(rows))
        write_lines(folder / f"{split}.tsv", [f"Quality\t{columns}", *lines], mark=True)
    lines = (f"{row}\t{pair(row)}" for row in range(TEST_ROWS["MRPC"]))
    write_lines(folder / "test.tsv", [f"index\t{columns}", *lines], mark=True)


def write_stsb(folder: Path) -> None:
    texts = Texts(4)

    def row_of(row: int) -> str:
        cells = (row, "main-captions", "MSRvid", "2012test", f"{row:04d}", "none", "none")
        return "\t".join([*map(str, cells), texts.sentence(), texts.sentence()])

    head = STSB_HEAD.split()
    # Its dev set has 1,500 rows: as many as a submission of its test set is checked with.
    for split, rows in (("train", TRAIN_ROWS), ("dev", 1_500)):
        lines = (f"{row_of(row)}\t{row % 11 / 2:.3f}" for row in range(rows))
        write_lines(folder / f"{split}.tsv", ["\t".join(head), *lines])
    write_lines(
        folder / "test.tsv", ["\t".join(head[:-1]), *(row_of(row) for row in range(TEST_ROWS["STS-B"]))]
    )


def write_qqp(folder: Path) -> None:
    texts = Texts(5)
    for split, rows in split_files():
        lines = (
            f"{split[0]}{row}\t-\t-\tWho {texts.sentence(1)[:-2]}?\tWhy is it that "
            f"{texts.sentence(1)[:-2]}?\t{row % 3 == 0:d}"
            for row in range(rows)
        )
        write_lines(folder / f"{split}.tsv", ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", *lines])


def inference_row(texts: Texts, row: int, genre: str, labels: Sequence[str]) -> str:
    """One row of MNLI or SNLI; the text of every third one ends with a blank."""
    label = labels[row % len(labels)]
    first, second = texts.sentence(), texts.sentence(1) + (" " if row % 3 == 0 else "")
    return "\t".join([str(row), "-", "-", genre, "-", "-", "-", "-", first, second, label, label])


def write_mnli(folder: Path) -> None:
    texts = Texts(6)
    labels = ("neutral", "contradiction", "entailment")
    for split, rows in split_files("dev_matched", "dev_mismatched"):
        lines = (inference_row(texts, row, "-", labels) for row in range(rows))
        write_lines(folder / f"{split}.tsv", ["\t".join(MNLI_HEAD.split()), *lines])


def write_pairs(
    seed: int, columns: tuple[str, str], labels: tuple[str, str], premise: int
) -> Callable[[Path], None]:
    """Files of QNLI, RTE or WNLI: index, two texts, a label.

    `premise`: sentences of the second text, or of the first where that is long.
    """

    def write(folder: Path) -> None:
        texts = Texts(seed)

        def row_of(row: int) -> str:
            long = texts.paragraph(1 + row % premise)
            pair = (texts.sentence(1), long) if columns[0] == "question" else (long, texts.sentence(1))
            return f"{row}\t{pair[0]}\t{pair[1]}"

        head = "index\t" + "\t".join(columns)
        for split, rows in split_files():
            lines = (f"{row_of(row)}\t{labels[row % 2]}" for row in range(rows))
            write_lines(folder / f"{split}.tsv", [f"{head}\tlabel", *lines])
        if folder.name in TEST_ROWS:
            write_lines(folder / "test.tsv", [head, *(row_of(row) for row in range(TEST_ROWS[folder.name]))])

    return write


GLUE_WRITERS: dict[str, Callable[[Path], None]] = {
    "CoLA": write_cola,
    "SST-2": write_sst2,
    "MRPC": write_mrpc,
    "STS-B": write_stsb,
    "QQP": write_qqp,
    "MNLI": write_mnli,
    "QNLI": write_pairs(7, ("question", "sentence"), ("entailment", "not_entailment"), premise=3),
    "RTE": write_pairs(8, ("sentence1", "sentence2"), ("not_entailment", "entailment"), premise=8),
    "WNLI": write_pairs(9, ("sentence1", "sentence2"), ("0", "1"), premise=2),
}


def write_snli(folder: Path) -> None:
    """Some rows have the label `-`: the annotators did not agree."""
    folder.mkdir()
    texts = Texts(10)
    labels = ("neutral", "contradiction", "entailment", "neutral", "entailment", "-")
    for split, rows in split_files():
        lines = []
        for row in range(rows):
            cells = inference_row(texts, row, "-", labels).split("\t")
            lines.append("\t".join([str(row), f"{row}.jpg#1", f"{row}.jpg#1r1n", *cells[4:]]))
        write_lines(folder / f"{split}.tsv", ["\t".join(SNLI_HEAD.split()), *lines])


def write_conll(folder: Path) -> None:
    """Words with BIO tags, a blank line between sentences; every type of WNUT-17 occurs."""
    folder.mkdir()
    texts = Texts(11)
    for split, rows in (*split_files(), ("test", DEV_ROWS)):
        sentences = []
        for row in range(rows):
            words = [f"{word}\tO" for word in texts.sentence(1).split()]
            entity = ENTITIES[row % len(ENTITIES)][1].split()
            kind = ENTITY_TYPES[row % len(ENTITY_TYPES)]
            tagged = [f"{word}\t{'B' if place == 0 else 'I'}-{kind}" for place, word in enumerate(entity)]
            sentences.append("\n".join([*words[:2], *tagged, *words[2:]]))
        write_lines(folder / f"{split}.conll", ["\n\n".join(sentences)])


def questions_of(texts: Texts, context: str, name: str, *, answerable: bool) -> list[dict[str, Any]]:
    """Questions about words of the context; every third one has several answers, and with `answerable=False`
    every fourth none.
    """
    words = context.split()
    questions = []
    for number in range(6):
        start = int(texts.random.integers(len(words) - 4))
        first = len(" ".join(words[:start])) + bool(start)
        answers = [
            {"text": " ".join(words[start : start + length]), "answer_start": first} for length in (2, 3, 2)
        ]
        question: dict[str, Any] = {"id": f"{name}_{number}", "question": f"What {texts.sentence(1)[:-2]}?"}
        question["answers"] = answers if number % 3 == 0 else answers[:1]
        if not answerable:
            question["is_impossible"] = number % 4 == 3
            if question["is_impossible"]:
                question["answers"] = []
        questions.append(question)
    return questions


def write_squad(folder: Path) -> None:
    folder.mkdir()
    texts = Texts(12)
    files = {"dev-v1.1-partA": True, "dev-v1.1-partB": True, "dev-v2.0-sample": False}
    for file, answerable in files.items():
        articles = []
        for article in range(4):
            paragraphs = []
            for number in range(5):
                context = texts.paragraph(4 + 3 * number)
                name = f"{file}_{article}_{number}"
                paragraphs.append(
                    {"context": context, "qas": questions_of(texts, context, name, answerable=answerable)}
                )
            articles.append({"title": f"Article_{article}", "paragraphs": paragraphs})
        version = "1.1" if answerable else "v2.0"
        (folder / f"{file}.json").write_text(json.dumps({"version": version, "data": articles}))


def write_conversations(folder: Path) -> None:
    """CoQA's and QuAC's files: spans with free answers, yes and no, several annotators, turns without an
    answer.
    """
    texts = Texts(13)
    (folder / "CoQA").mkdir()
    (folder / "QuAC").mkdir()
    for split in ("train", "dev"):
        stories = [coqa_story(texts, f"{split}_{number}") for number in range(3)]
        if split == "train":
            for story in stories:
                del story["additional_answers"]  # only dev has several people's answers
        path = folder / f"CoQA/coqa-{split}-v1.0.json"
        path.write_text(json.dumps({"version": "1.0", "data": stories}))
    for split in ("train", "val"):
        sections = [quac_section(texts, f"C_{split}{number}_1") for number in range(3)]
        (folder / f"QuAC/{split}_v0.2.json").write_text(json.dumps({"data": sections}))


def coqa_story(texts: Texts, name: str) -> dict[str, Any]:
    story = texts.paragraph(12)
    words = story.split()
    questions, answers, others = [], [], []
    for turn in range(1, 9):
        start = int(texts.random.integers(len(words) - 8))
        first = len(" ".join(words[:start])) + bool(start)
        span = " ".join(words[start : start + 6])
        free = (
            ("yes", "no", "unknown")[turn // 2 % 3]
            if turn % 2 == 0
            else " ".join(words[start + 1 : start + 4])
        )
        questions.append({"input_text": f"What about {words[start]}?", "turn_id": turn})
        answer = {
            "span_start": first,
            "span_end": first + len(span),
            "span_text": span,
            "input_text": free,
            "turn_id": turn,
        }
        if free == "unknown":
            answer |= {"span_start": -1, "span_end": -1, "span_text": "unknown"}
        answers.append(answer)
        others.append({**answer, "input_text": free.upper()})
    return {
        "source": "mctest",
        "id": name,
        "filename": name,
        "story": story,
        "questions": questions,
        "answers": answers,
        "additional_answers": {str(number): others for number in range(3)},
        "name": name,
    }


def quac_section(texts: Texts, name: str) -> dict[str, Any]:
    context = texts.paragraph(14) + " CANNOTANSWER"
    words = context.split()[:-1]
    turns = []
    for turn in range(7):
        start = int(texts.random.integers(len(words) - 8))
        first = len(" ".join(words[:start])) + bool(start)
        answer = {"text": " ".join(words[start : start + 5]), "answer_start": first}
        if turn == 4:
            answer = {"text": "CANNOTANSWER", "answer_start": context.index("CANNOTANSWER")}
        longer = answer if turn == 4 else {"text": " ".join(words[start : start + 7]), "answer_start": first}
        turns.append(
            {
                "followup": "ymn"[turn % 3],
                "yesno": "xyn"[turn % 3],
                "question": f"what happened to {words[start]}?",
                "answers": [answer, longer],
                "id": f"{name}_q#{turn}",
                "orig_answer": answer,
            }
        )
    paragraph = {"context": context, "qas": turns, "id": name}
    return {
        "paragraphs": [paragraph],
        "section_title": "1983",
        "background": texts.paragraph(2),
        "title": "A life",
    }


def write_articles(folder: Path) -> None:
    """Articles of paragraphs and headings, a JSON object a line."""
    folder.mkdir()
    texts = Texts(14)
    lines = []
    for number in range(10):
        parts = [f"Article {number}"]
        for section in range(12):
            parts += [texts.paragraph(3 + section % 4), f"Section {section}"]
        text = "\n\n".join(parts)
        lines.append(json.dumps({"id": str(number), "url": "", "title": f"Article {number}", "text": text}))
    write_lines(folder / "articles.jsonl", lines)
