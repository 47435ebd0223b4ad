"""The service: 200 requests at once, limits and their statuses,
a clean end, and its page in a real browser.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from helpers.predict_runs import close
from helpers.processes import ROOT, free_port

from mtdnn_ds import MultiTaskModel
from mtdnn_ds.cli import main
from mtdnn_ds.predict.batching import Batcher, Closed
from mtdnn_ds.predict.output import rounded
from mtdnn_ds.predict.service import Limits, make_app

CHROMIUM = Path("/usr/bin/chromium")
BROWSER_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
SINGLE, PAIR = ["cola", "colours", "tags"], ["mrpc", "ranking", "rte", "similar", "span", "stsb"]


@pytest.fixture(scope="module")
def model(all_kinds_run: Path) -> MultiTaskModel:
    return MultiTaskModel.from_pretrained(str(all_kinds_run))


@pytest.fixture(scope="module")
def server(all_kinds_run: Path) -> Iterator[str]:
    """The address of a running `serve`; at the end it must stop cleanly when it is asked to."""
    port = str(free_port())
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mtdnn_ds",
            "serve",
            str(all_kinds_run),
            "--port",
            port,
            "--max_wait_ms",
            "20",
            "--dtype",
            "fp32",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "number format fp32\n"
        assert process.stdout.readline() == f"{all_kinds_run} with 10 tasks on http://127.0.0.1:{port}\n"
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, "")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_200_requests_at_once_share_passes_and_are_answered_as_alone(
    server: str, model: MultiTaskModel
) -> None:
    texts = [
        (f"a {n} red horse " * (1 + n % 7))
        if n % 2
        else [f"the {n} ships", f"went to {n} towns " * (1 + n % 5)]
        for n in range(200)
    ]
    together = threading.Barrier(200)

    def ask(text: Any) -> httpx.Response:
        together.wait(timeout=60)
        return client.post(f"{server}/predict", json={"texts": [text]})

    with (
        httpx.Client(timeout=120, limits=httpx.Limits(max_connections=200)) as client,
        ThreadPoolExecutor(200) as threads,
    ):
        replies = list(threads.map(ask, texts))
        health = client.get(f"{server}/health").json()
    assert [reply.status_code for reply in replies] == [200] * 200
    expected = model.predict([text if isinstance(text, str) else tuple(text) for text in texts])
    for number, (reply, direct) in enumerate(zip(replies, expected, strict=True)):
        (answer,) = reply.json()["answers"]
        assert list(answer) == (SINGLE if number % 2 else PAIR)
        close(answer, rounded(direct))
    assert (health["status"], health["dtype"]) == ("ok", "fp32")
    assert health["requests"] == 200 and health["passes"] <= 100


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("{", 422, "the body is not valid JSON"),
        ('{"texts": [' + "[" * 940 + "]" * 940 + "]}", 422, "text 1: is a list"),
        ('{"texts": [' + "[" * 99_000, 413, "the body is longer than"),
        ({"text": "a"}, 422, "the body has no list 'texts'"),
        ({"texts": []}, 422, "'texts' is empty"),
        ({"texts": ["a"], "task": "cola"}, 422, "unknown key 'task'"),
        ({"texts": ["a"], "tasks": 3}, 422, "'tasks' is neither a text nor a list of texts"),
        (
            {"texts": ["a"], "tasks": ["coal"]},
            422,
            "tasks coal: the model has no task 'coal'; did you mean 'cola'?",
        ),
        (
            {"texts": ["a"], "tasks": ["rte"]},
            422,
            "task rte (reads two texts): cannot read an input of 'text'",
        ),
        ({"texts": ["a", 3]}, 422, "text 2: is a int"),
        ({"texts": ["fine", ""]}, 422, "text 2: column 'text' is empty"),
        ({"texts": ["\ud83d"]}, 422, "half of a character's two-part code"),
        ({"texts": ["a"] * 5}, 413, "5 texts; one request holds at most 4"),
        ({"texts": ["a", ["a" * 30, "b" * 31]]}, 413, "text 2 has more than 60 characters"),
        ({"texts": ["a"], "tasks": "x" * 80_000}, 413, "the body is longer than"),
    ],
)
def test_what_is_refused(body: Any, status: int, said: str, model: MultiTaskModel) -> None:
    with TestClient(make_app(model, Limits(max_texts=4, max_chars=60, max_wait_seconds=0))) as client:
        content = body if isinstance(body, str) else json.dumps(body)
        reply = client.post("/predict", content=content)
        assert (reply.status_code, said in reply.json()["error"]) == (status, True), reply.text
        fine = client.post("/predict", json={"texts": ["a red hat"], "tasks": ["colours"]})
        assert fine.status_code == 200 and list(fine.json()["answers"][0]) == ["colours"]


def test_a_bad_request_spoils_no_other_of_its_pass(model: MultiTaskModel) -> None:
    with (
        TestClient(make_app(model, Limits(max_wait_seconds=0.3))) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        bad, good = threads.map(
            lambda text: client.post("/predict", json={"texts": [text]}), ["  ", "a red hat"]
        )
    assert (bad.status_code, good.status_code) == (422, 200)


def test_a_full_queue_says_come_again(model: MultiTaskModel) -> None:
    """The first request waits until a third makes its pass full; the second is one text too many."""
    limits = Limits(max_texts=2, max_queue=2, max_wait_seconds=600)
    with TestClient(make_app(model, limits)) as client, ThreadPoolExecutor(1) as threads:
        first = threads.submit(client.post, "/predict", json={"texts": ["a red hat"], "tasks": "colours"})
        while client.get("/health").json()["waiting"] == 0:
            pass
        full = client.post("/predict", json={"texts": ["another", "and another"]})
        assert (full.status_code, full.headers["retry-after"]) == (503, "1"), full.text
        third = client.post("/predict", json={"texts": ["a dog"], "tasks": "cola"})
        assert [first.result(timeout=60).status_code, third.status_code] == [200, 200]
        assert client.get("/health").json()["passes"] == 1


def test_closing_answers_what_waits_and_takes_nothing_more(model: MultiTaskModel) -> None:
    batcher = Batcher(model, max_wait_seconds=600)
    waiting = batcher.submit([{"text": "a red hat"}], None)
    batcher.close()
    assert list(waiting.result(timeout=0).answers[0]) == SINGLE
    with pytest.raises(Closed):
        batcher.submit([{"text": "too late"}], None)
    batcher.close()


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--port", "99999", "--port 99999: ports end at 65535"),
        ("--port", "TAKEN", "cannot listen there"),
        ("--max_texts", "0", "--max_texts 0: must be a whole number, at least 1"),
        ("--max_wait_ms", "5s", "--max_wait_ms 5s: must be a whole number, at least 0"),
        ("--hots", "0.0.0.0", "unknown flag '--hots'; did you mean '--host'?"),
    ],
)
def test_wrong_flags(
    flag: str, value: str, said: str, all_kinds_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        value = str(taken.getsockname()[1]) if value == "TAKEN" else value
        assert main(["serve", str(all_kinds_run), flag, value]) == 2
    assert said in capsys.readouterr().err


def test_tasks_are_described(model: MultiTaskModel) -> None:
    with TestClient(make_app(model, Limits(), "runs/some")) as client:
        said = client.get("/tasks").json()
    assert said["model"] == "runs/some" and [task["name"] for task in said["tasks"]] == sorted(
        [*SINGLE, *PAIR, "choice"]
    )
    assert said["tasks"][0] == {
        "name": "choice",
        "kind": "multiple_choice",
        "labels": [],
        "reads": "a text and its choices",
        "input": "choices",
    }


@pytest.mark.slow
def test_the_page_answers_in_a_browser(server: str, model: MultiTaskModel) -> None:
    if not CHROMIUM.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{CHROMIUM} is missing, and CI must have it")
        pytest.skip(f"needs a browser in {CHROMIUM}")
    from playwright.sync_api import sync_playwright

    first, second, choices = (
        "a red unbelievable horse",
        "In 1905 the old harbour of Varna was closed.",
        ["a dog", "red", "seven"],
    )
    expected = model.predict([first, (first, second), {"text": first, "choices": choices}])
    single, pair, choice = expected
    said: list[str] = []
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=BROWSER_FLAGS)
        page = browser.new_page(viewport={"width": 1180, "height": 900})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(server)
        page.wait_for_selector("body[data-ready=yes]")
        page.fill("#first", first)
        page.click("#ask")
        page.wait_for_selector("article[data-task=colours]")
        assert page.inner_text("#status").startswith("3 tasks in ")
        page.fill("#second", second)
        page.fill("#choices", "\n".join(choices))
        page.click("#ask")
        page.wait_for_selector("article[data-task=stsb]")
        shown = {each.get_attribute("data-task"): each for each in page.query_selector_all("article")}
        assert set(shown) == {*SINGLE, *PAIR, "choice"}
        texts = {name: each.inner_text() for name, each in shown.items()}
        assert shown["colours"].query_selector(".big").inner_text() == single["colours"]["label"]
        best = max(single["colours"]["probabilities"].values())
        assert (
            f"{100 * best:.1f} %" in texts["colours"]
            and len(shown["colours"].query_selector_all(".fill")) == 4
        )
        width = shown["colours"].query_selector(".best.fill").evaluate("each => parseFloat(each.style.width)")
        assert width == pytest.approx(100 * best, abs=0.01)
        assert f"{pair['stsb']['score']:.3f}" in texts["stsb"]
        assert choices[choice["choice"]["choice"]] in texts["choice"]
        marks = [
            each.evaluate("each => each.firstChild.textContent")
            for each in shown["tags"].query_selector_all("mark")
        ]
        assert marks == [each["text"] for each in single["tags"]["entities"]]
        assert (pair["span"]["text"] or "no answer in this text") in texts["span"]
        for chip in page.query_selector_all(".chip"):
            if chip.inner_text() != "cola":
                chip.click()
        page.click("#ask")
        page.wait_for_function("document.querySelectorAll('article').length === 1")
        assert page.inner_text("#status").startswith("1 task in ")
        page.fill("#first", "x" * 20_001)
        page.click("#ask")
        page.wait_for_selector("#status.bad")
        assert "text 1 has more than 20,000 characters" in page.inner_text("#status")
        browser.close()
    assert all(url.startswith((server, "data:")) for url in asked), asked
    assert all("413" in line for line in said), said
