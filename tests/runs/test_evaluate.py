"""Evaluation: outputs are read from the device together, batches are made in a thread that ends."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtdnn_ds import MultiTaskModel
from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.config.errors import DataError
from mtdnn_ds.data.batches import loader
from mtdnn_ds.data.examples import TermOutputs
from mtdnn_ds.predict import embedding, passes
from mtdnn_ds.runs import evaluate, readback
from mtdnn_ds.runs.evaluate import EvaluationStopped
from mtdnn_ds.runs.readback import Readback, waiting_bytes
from mtdnn_ds.runs.setup import RunData, prepare_run_data
from mtdnn_ds.tasks.resolve import resolve_tasks

TEXTS = [f"a red horse and {n} ships " * (1 + n % 4) for n in range(24)]


@pytest.fixture(scope="module")
def model(all_kinds_run: Path) -> MultiTaskModel:
    return MultiTaskModel.from_pretrained(str(all_kinds_run))


@pytest.fixture(scope="module")
def data(model: MultiTaskModel) -> RunData:
    return prepare_run_data(model.recipe, resolve_tasks(model.recipe))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of parts of each transfer to the host."""
    found: list[int] = []

    def counted(parts: list[Tensor]) -> np.ndarray:
        found.append(len(parts))
        return to_host(parts)

    to_host = readback.to_host
    monkeypatch.setattr(readback, "to_host", counted)
    return found


def let_wait(monkeypatch: pytest.MonkeyPatch, most_bytes: int) -> None:
    """As on a GPU: outputs wait, `most_bytes` of them."""
    for module in (evaluate, passes, embedding):
        monkeypatch.setattr(module, "waiting_bytes", lambda device: most_bytes)


def dev_outputs(model: MultiTaskModel, data: RunData, **settings: Any) -> list[list[TermOutputs]]:
    wanted = [(index, "dev") for index, spec in enumerate(data.specs) if spec.dev_splits]
    many_batches = replace(model.settings, max_tokens_per_micro_batch=128)
    return evaluate.predict(model.net, wanted, data, many_batches, model.device, **settings)


def assert_equal(ours: Sequence[Sequence[TermOutputs]], theirs: Sequence[Sequence[TermOutputs]]) -> None:
    for our_terms, their_terms in zip(ours, theirs, strict=True):
        for own, other in zip(our_terms, their_terms, strict=True):
            assert own.values.dtype == np.float32
            assert own.values.tobytes() == other.values.tobytes()
            assert own.labels.tobytes() == other.labels.tobytes()
            assert own.offsets.tolist() == other.offsets.tolist()


def test_each_form_is_read_once_for_all_micro_batches(
    model: MultiTaskModel, data: RunData, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = dev_outputs(model, data)
    num_parts = len(reads)
    assert set(reads) == {1}  # on the CPU nothing waits

    reads.clear()
    let_wait(monkeypatch, 2**28)
    assert_equal(dev_outputs(model, data), at_once)
    # class, score, san, tag, choice, pairwise or its like, cosine, span: each once, with all that it had.
    forms = {term.form for term in data.layout.terms if term.form != "masked_token"}
    assert len(reads) == len(forms) >= 7
    assert sum(reads) == num_parts > 3 * len(forms)


def test_what_waits_is_read_before_it_fills_the_memory(
    model: MultiTaskModel, data: RunData, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = dev_outputs(model, data)
    num_parts = len(reads)
    reads.clear()
    let_wait(monkeypatch, 1_000)
    assert_equal(dev_outputs(model, data), at_once)
    assert sum(reads) == num_parts
    assert 10 < len(reads) < num_parts


def test_as_much_may_wait_as_is_said() -> None:
    taken: list[str] = []
    waiting = Readback(most_bytes=100)
    for name in ("one", "two", "three"):
        waiting.add(name, torch.zeros(4, 2), lambda rows, name=name: taken.append(name))  # type: ignore[misc]
        assert taken == []  # 32, 64 and 96 bytes
    waiting.add("one", torch.ones(1, 2), lambda rows: taken.append(str(rows.tolist())))
    assert taken == ["one", "[[1.0, 1.0]]", "two", "three"]
    waiting.read()
    assert len(taken) == 4

    assert waiting_bytes(torch.device("cpu")) == 0
    assert waiting_bytes(torch.device("cuda", 3)) == 268_435_456


def test_answers_and_embeddings_are_read_once(
    model: MultiTaskModel, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = model.predict(TEXTS, tasks=["cola", "colours"], max_tokens=64)
    vectors = model.embed(TEXTS)
    num_parts = len(reads)

    reads.clear()
    let_wait(monkeypatch, 2**28)
    assert model.predict(TEXTS, tasks=["cola", "colours"], max_tokens=64) == answers
    assert len(reads) == 1 and reads[0] == num_parts - 1 > 5  # both tasks are of one form
    assert model.embed(TEXTS).tobytes() == vectors.tobytes()
    assert len(reads) == 2


THREAD = "mtdnn_ds-evaluation"


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == THREAD]


@pytest.fixture
def for_a_gpu(model: MultiTaskModel, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Batches are made as for a GPU, without one: who has pinned each of them."""
    pinned_by: list[str] = []

    def pin_memory(batch: PackedBatch) -> PackedBatch:
        pinned_by.append(threading.current_thread().name)
        return batch

    monkeypatch.setattr(PackedBatch, "pin_memory", pin_memory)
    monkeypatch.setattr(model, "settings", replace(model.settings, pin_memory=True))
    return pinned_by


def test_batches_for_a_gpu_are_pinned_ahead_in_a_thread_and_are_the_same(
    model: MultiTaskModel, data: RunData, reads: list[int], request: pytest.FixtureRequest
) -> None:
    in_line = dev_outputs(model, data)
    num_parts = len(reads)
    pinned_by = request.getfixturevalue("for_a_gpu")
    assert_equal(dev_outputs(model, data), in_line)
    assert len(reads) == 2 * num_parts
    assert set(pinned_by) == {THREAD} and len(pinned_by) > 20
    assert threads() == []


def test_a_stopped_evaluation_leaves_nothing_running(
    model: MultiTaskModel, data: RunData, for_a_gpu: list[str]
) -> None:
    asked = []

    def stop_asked() -> bool:
        asked.append(threads())
        return len(asked) == 2

    model.net.train()
    try:
        # `stopped` keeps the frames of the evaluation alive, so that nothing ends by being forgotten.
        with pytest.raises(EvaluationStopped) as stopped:
            dev_outputs(model, data, stop_asked=stop_asked)
        assert model.net.training
    finally:
        model.net.eval()
    assert asked == [[THREAD]] * 2  # it ran, with micro-batches left
    assert threads() == [], stopped


def test_an_error_of_the_model_leaves_nothing_running(
    model: MultiTaskModel, data: RunData, for_a_gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = []

    def fail(batch: Any) -> Any:
        running.extend(threads())
        raise ZeroDivisionError("in the forward")

    monkeypatch.setattr(model.net, "forward", fail)
    with pytest.raises(ZeroDivisionError, match="in the forward") as failed:
        dev_outputs(model, data)
    assert running == [THREAD]
    assert threads() == [], failed


def test_an_error_in_the_thread_reaches_the_caller(
    model: MultiTaskModel, data: RunData, for_a_gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def collate(*parts: Any) -> Any:
        made.append(threading.current_thread().name)
        if len(made) == 3:
            raise DataError("some.tsv row 7: is gone")
        return whole(*parts)

    whole = loader.collate
    monkeypatch.setattr(loader, "collate", collate)
    with pytest.raises(DataError, match=r"some\.tsv row 7: is gone"):
        dev_outputs(model, data)
    assert made == [THREAD] * 3
    assert threads() == []
