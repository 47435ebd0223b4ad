"""--dtype: which format it means where, what is refused and said, and what bf16 does to answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from helpers.processes import run_command

from mtdnn_ds import MultiTaskModel
from mtdnn_ds.cli import main
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.model import multitask
from mtdnn_ds.predict.files import predict_file
from mtdnn_ds.predict.output import rounded
from mtdnn_ds.predict.service import Limits, make_app
from mtdnn_ds.predict.table import open_table
from mtdnn_ds.runs import number_format
from mtdnn_ds.runs.device import Device
from mtdnn_ds.runs.model_folder import open_model
from mtdnn_ds.runs.number_format import answering_dtype, choose_format

CPU, OLD_CPU = (Device(type="cpu", fast_bf16=has, fp16=has) for has in (True, False))
GPU, OLD_GPU = (Device(type="cuda", fast_bf16=has, fp16=True) for has in (True, False))
TEXTS = ["a red unbelievable horse", "The harbour was closed.", "no", "a dog and a green hat " * 3]
PAIRS = [(text, TEXTS[::-1][number]) for number, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def model(all_kinds_run: Path) -> MultiTaskModel:
    return MultiTaskModel.from_pretrained(str(all_kinds_run), dtype="fp32")


@pytest.fixture(scope="module")
def in_bf16(all_kinds_run: Path) -> MultiTaskModel:
    return MultiTaskModel.from_pretrained(str(all_kinds_run), dtype="bf16")


@pytest.mark.parametrize(
    ("asked", "device", "format", "note"),
    [
        ("auto", CPU, "fp32", "number format fp32 (--dtype auto)"),
        ("auto", OLD_CPU, "fp32", "number format fp32 (--dtype auto)"),
        ("auto", GPU, "bf16", "number format bf16 (--dtype auto)"),
        (
            "auto",
            OLD_GPU,
            "fp32",
            "number format fp32 (--dtype auto), with TF32 off: exact, and slow on a GPU; fp16 is faster",
        ),
        ("fp32", CPU, "fp32", "number format fp32"),
        (
            "fp32",
            GPU,
            "fp32",
            "number format fp32, with TF32 off: exact, and slow on a GPU; bf16 is faster",
        ),
        ("bf16", CPU, "bf16", "number format bf16"),
        (
            "bf16",
            OLD_CPU,
            "bf16",
            "number format bf16: this CPU has no bf16 arithmetic and emulates it, slowly; fp32 is faster",
        ),
        (
            "bf16",
            OLD_GPU,
            "bf16",
            "number format bf16: this GPU has no bf16 arithmetic and emulates it, slowly; fp16 is faster",
        ),
        ("fp16", CPU, "fp16", "number format fp16"),
        ("fp16", GPU, "fp16", "number format fp16"),
    ],
)
def test_formats_of_devices(asked: str, device: Device, format: str, note: str) -> None:
    assert choose_format(asked, device, tf32_is_off=True) == (format, note)


def test_tf32_that_a_program_has_turned_on_is_not_called_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_format("fp32", GPU, tf32_is_off=False) == ("fp32", "number format fp32")
    assert number_format._tf32_is_off()
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert not number_format._tf32_is_off()
    finally:
        torch.set_float32_matmul_precision(precision)


def test_what_a_device_cannot_compute_is_refused(
    all_kinds_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(number_format, "probe_answering", lambda device: OLD_CPU)
    with pytest.raises(
        ConfigError,
        match=(
            r"^--dtype fp16: this CPU has no fp16 arithmetic; "
            r"use fp32, or bf16 \(which is slow on a CPU that emulates it\)$"
        ),
    ):
        MultiTaskModel.from_pretrained(str(all_kinds_run), dtype="fp16")


def test_a_word_that_is_no_format_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^--dtype bf61: unknown; did you mean 'bf16'\? \(known: auto, bf16, fp16, fp32\)$"
    ):
        answering_dtype("bf61", torch.device("cpu"))


@pytest.mark.parametrize("verb", ["predict", "embed", "serve", "evaluate"])
def test_every_verb_refuses_it_before_it_opens_anything(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"predict": "out.jsonl", "embed": "out.npy"}
    files = ["--input", "nope.txt", "--output", str(tmp_path / more[verb])] if verb in more else []
    assert main([verb, str(tmp_path), *files, "--dtype", "fp23"]) == 2
    assert "--dtype fp23: unknown; did you mean 'fp32'?" in capsys.readouterr().err


def test_auto_on_the_cpu_is_fp32_bit_for_bit(
    all_kinds_run: Path, model: MultiTaskModel, said: list[str]
) -> None:
    auto = MultiTaskModel.from_pretrained(str(all_kinds_run))
    assert said == ["number format fp32 (--dtype auto)"]
    unnamed = open_model(str(all_kinds_run), "best/average", device=torch.device("cpu"))
    for loaded in (auto.loaded, model.loaded, unnamed):
        assert loaded.dtype == torch.float32
    assert auto.predict([*TEXTS, *PAIRS]) == model.predict([*TEXTS, *PAIRS])
    assert auto.embed(TEXTS).tobytes() == model.embed(TEXTS).tobytes()


def numbers(answer: Any) -> list[float]:
    """Every float of an answer, in its order."""
    if isinstance(answer, float):
        return [answer]
    if isinstance(answer, dict):
        answer = list(answer.values())
    if isinstance(answer, list):
        return [number for each in answer for number in numbers(each)]
    return []


def test_bf16_differs_from_fp32_by_its_rounding(model: MultiTaskModel, in_bf16: MultiTaskModel) -> None:
    """A number of size 3 is rounded by up to 0.008 in bf16, each time that it is kept."""
    assert in_bf16.loaded.dtype == torch.bfloat16
    names = ["cola", "colours"], ["mrpc", "ranking", "rte", "stsb", "similar"]
    for rows, tasks in zip((TEXTS, PAIRS), names, strict=True):
        exact = np.array(numbers(model.predict(rows, tasks=tasks)))
        ours = np.array(numbers(in_bf16.predict(rows, tasks=tasks)))
        difference = np.abs(ours - exact).max()
        assert 1e-4 < difference < 0.05
    for pooling in ("cls", "mean"):
        exact, ours = model.embed(TEXTS, pooling), in_bf16.embed(TEXTS, pooling)  # type: ignore[arg-type]
        assert ours.dtype == np.float32
        assert 1e-4 < np.abs(ours - exact).max() < 0.06


def test_outputs_leave_in_float32(in_bf16: MultiTaskModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    forward = in_bf16.net.forward

    def watched(batch: Any) -> Any:
        outputs = forward(batch)
        seen.extend(rows.dtype for rows in outputs.values())
        return outputs

    monkeypatch.setattr(in_bf16.net, "forward", watched)
    in_bf16.predict([*TEXTS, *PAIRS])
    assert set(seen) == {torch.float32}


def test_attention_is_chosen_for_the_format(all_kinds_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, torch.dtype]] = []

    def choose(requested: str, device_type: str, dtype: torch.dtype, **facts: Any) -> Any:
        asked.append((device_type, dtype))
        return choose_backend(requested, device_type, dtype, **facts)

    choose_backend = multitask.choose_backend
    monkeypatch.setattr(multitask, "choose_backend", choose)
    for dtype in ("auto", "bf16"):
        MultiTaskModel.from_pretrained(str(all_kinds_run), dtype=dtype)  # type: ignore[arg-type]
    assert asked == [("cpu", torch.float32), ("cpu", torch.bfloat16)]


def test_the_service_answers_in_its_format_and_says_which(in_bf16: MultiTaskModel) -> None:
    with TestClient(make_app(in_bf16, Limits(max_wait_seconds=0))) as client:
        assert client.get("/health").json()["dtype"] == "bf16"
        reply = client.post("/predict", json={"texts": TEXTS[:2], "tasks": ["colours"]})
    assert reply.json()["answers"] == rounded(in_bf16.predict(TEXTS[:2], tasks=["colours"]))


def test_a_killed_run_goes_on_in_its_own_format_alone(
    model: MultiTaskModel, in_bf16: MultiTaskModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.txt").write_text("\n".join(TEXTS) + "\n")
    table = open_table(str(tmp_path / "in.txt"), text_columns=None, id_column=None)
    output = tmp_path / "out.jsonl"

    calls = []

    def killed(*parts: Any, **settings: Any) -> Any:
        calls.append(parts)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answer(*parts, **settings)

    answer = model.answer_checked
    monkeypatch.setattr(model, "answer_checked", killed)
    with pytest.raises(KeyboardInterrupt):
        predict_file(model, table, output, asked=None, window_rows=2)
    with pytest.raises(ConfigError, match=r"dtype was 'fp32' and is 'bf16'"):
        predict_file(in_bf16, table, output, asked=None, window_rows=2)
    assert predict_file(model, table, output, asked=None, window_rows=2).went_on == 2


@pytest.mark.distributed
def test_evaluate_takes_a_format(all_kinds_run: Path) -> None:
    averages = []
    for dtype in ("fp32", "bf16"):
        ended = run_command(["-m", "mtdnn_ds", "evaluate", str(all_kinds_run), "--dtype", dtype])
        assert ended.returncode == 0, ended.stderr
        lines = ended.stdout.splitlines()
        assert [line.split(":")[0] for line in lines if "number format" in line] == [f"number format {dtype}"]
        averages += [float(line.split()[1]) for line in lines if line.startswith("average  ")]
    assert averages[1] == pytest.approx(averages[0], abs=0.05)
