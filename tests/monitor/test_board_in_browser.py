"""TensorBoard on a real run: read back with its own reader, and opened once in a real browser."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import yaml
from helpers.browser import chromium

from mtdnn_ds.config.launch import free_port

TASKS = ["cola", "mnli", "mrpc", "quickstart_sentiment", "rte", "shop", "stsb", "wnut17"]


def test_text_and_embeddings_are_read_back(finished_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(finished_run / "tensorboard")).Reload()
    (panel,) = board.Tensors("recipe/text_summary")
    text = panel.tensor_proto.string_val[0].decode()
    assert all(line.startswith("    ") for line in text.splitlines()), "a block that Markdown leaves as it is"
    assert yaml.safe_load(text) == yaml.safe_load((finished_run / "recipe.yaml").read_text())
    vectors = np.loadtxt(finished_run / "tensorboard/embeddings.tsv", delimiter="\t")
    header, *rows = [
        line.split("\t") for line in (finished_run / "tensorboard/metadata.tsv").read_text().splitlines()
    ]
    assert (
        vectors.shape == (8 * len(TASKS), 32)
        and np.isfinite(vectors).all()
        and len(np.unique(vectors, axis=0)) > 50
    )
    assert header == ["task", "label", "row"] and [row[0] for row in rows] == [
        task for task in TASKS for _ in range(8)
    ]
    assert [row[1:] for row in rows if row[0] == "shop"] == [
        [("late", "broken", "fine")[number % 3], str(number + 2)] for number in range(8)
    ]
    assert {row[1] for row in rows if row[0] == "wnut17"} == {"-"}
    scores = [float(row[1]) for row in rows if row[0] == "stsb"]
    assert scores == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]  # helpers/official_files.py: a row's number / 2


def test_embeddings_are_the_hidden_states_of_the_first_token(
    finished_run: Path, official_files: Path
) -> None:
    """Against plain transformers on the last weights, CoLA's first dev row."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from mtdnn_ds.checkpoint.weights import read_weights

    path = yaml.safe_load((finished_run / "recipe.yaml").read_text())["encoder"]["path"]
    prefix = "encoder.model."
    weights = {
        name.removeprefix(prefix): value
        for name, value in read_weights(finished_run / "checkpoints/step_12").items()
        if name.startswith(prefix)
    }
    theirs = AutoModel.from_pretrained(path, add_pooling_layer=False)
    theirs.load_state_dict(weights)
    text = (official_files / "glue/CoLA/dev.tsv").read_text().split("\n")[0].split("\t")[3]
    with torch.no_grad():
        expected = (
            theirs.eval()(**AutoTokenizer.from_pretrained(path)(text, return_tensors="pt"))
            .last_hidden_state[0, 0]
            .numpy()
        )
    ours = np.loadtxt(finished_run / "tensorboard/embeddings.tsv", delimiter="\t", max_rows=1)
    np.testing.assert_allclose(ours, expected, atol=2e-5)


@pytest.fixture(scope="module")
def board(finished_run: Path) -> Iterator[str]:
    """The address of a TensorBoard on the run, which ends with the module."""
    port = free_port()
    flags = [
        "--logdir",
        str(finished_run),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--load_fast=false",
        "--reload_interval",
        "0",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *flags], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:  # until it says where it listens, or ends
            said.append(line)
            if "http://" in line:
                break
        assert process.poll() is None, "".join(said)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_board_opens_in_a_browser(board: str, finished_run: Path) -> None:
    layout = json.load(urlopen(f"{board}/data/plugin/custom_scalars/layout"))
    assert [chart["title"] for chart in layout["category"][0]["chart"]] == [
        "loss of every task",
        "main dev metric of every task",
    ]
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1400})
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)

        page.goto(f"{board}/#custom_scalars")
        for chart, tags in (
            ("loss of every task", ["loss", *(f"loss/{task}" for task in TASKS)]),
            (
                "main dev metric of every task",
                [
                    "eval/average",
                    "eval/cola/matthews",
                    "eval/mnli/accuracy",
                    "eval/stsb/pearson",
                    "eval/wnut17/entity_f1",
                    "eval/shop/accuracy",
                ],
            ),
        ):
            card = page.locator("tf-custom-scalar-multi-line-chart-card", has_text=chart)
            card.get_by_text("Matches (9)").wait_for()
            card.locator(".toggle-matches-button").click()
            for tag in tags:
                card.get_by_text(re.compile(rf"(^|\s|\)){re.escape(tag)}(\s|$)")).first.wait_for()

        page.goto(f"{board}/#text")
        page.get_by_text("max_length: 48").wait_for()
        page.goto(f"{board}/#projector")
        page.reload()  # the tab is shown once the board knows that there are embeddings
        projector = page.frame_locator("iframe").frame_locator("iframe")
        projector.get_by_text("1 tensor found").first.wait_for()
        projector.locator(".numDataPoints", has_text="64").first.wait_for()
        assert projector.locator(".dim").first.inner_text() == "32"
        assert {"SCALARS", "CUSTOM SCALARS", "TEXT", "HPARAMS", "PROJECTOR"} <= set(
            page.inner_text("body").split("\n")
        )
        assert wrong == []
