"""The report of real runs: one page, complete in itself, true to the log,
safe against hostile texts; looked at by a real browser.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from helpers.browser import chromium
from helpers.finished_run import HOSTILE
from helpers.processes import training_lines
from playwright.sync_api import expect
from plotly.offline import get_plotlyjs

from mtdnn_ds.cli import main, read_arguments
from mtdnn_ds.commands.verbs import VERBS
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.report.chart import Card, Chart
from mtdnn_ds.report.curves import health_charts
from mtdnn_ds.report.matrices import matrix_chart
from mtdnn_ds.report.page import Section, page
from mtdnn_ds.report.plots import Series, bar_chart, line_chart
from mtdnn_ds.report.runs import read_runs
from mtdnn_ds.report.smoothing import smoothed, thinned
from mtdnn_ds.report.style import escape, escape_label, number

TASKS = ["cola", "mnli", "mrpc", "quickstart_sentiment", "rte", "shop", "stsb", "wnut17"]


@pytest.fixture(scope="module")
def reports(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of a run with its predictions;
    and of that run beside one that was stopped, has a torn line and lost its plan.
    """
    folder = tmp_path_factory.mktemp("reports")
    other = folder / "other"
    shutil.copytree(
        finished_run, other, ignore=shutil.ignore_patterns("checkpoints", "tensorboard", "plan.json")
    )
    with (other / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "loss"')
    stop = {
        "time": "2026-01-02T03:04:05+00:00",
        "step": 5,
        "reasons": ["rank 0: <b>SIGTERM</b>"],
        "save_seconds": 1.0,
    }
    (other / "stops.jsonl").write_text(json.dumps(stop) + "\n")
    (other / "metrics.discarded.jsonl").write_text('{"step": 9, "loss": 1.0}\n{"step": 10, "loss": 1.0}\n')
    assert main(["report", str(finished_run), "--output", str(folder / "one.html")]) == 0
    assert (
        main(
            [
                "report",
                str(finished_run),
                str(other),
                "--output",
                str(folder / "two.html"),
                "--no_predictions",
            ]
        )
        == 0
    )
    return {"one": folder / "one.html", "two": folder / "two.html", "other": other}


class Page(HTMLParser):
    """Tables as lists of cell texts,
    figures by section and title as plotly is given them, scripts, and every address.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.figures: dict[str, dict[str, Any]] = {}
        self.scripts: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self._title = ""
        self._section = ""
        self._in: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.addresses += [
            value or ""
            for name, value in attributes
            if name in ("src", "href", "xlink:href", "srcset", "action", "data")
        ]
        assert not [name for name, _ in attributes if name.startswith("on")], attributes
        assert tag not in ("img", "iframe", "object", "embed"), tag
        if tag == "script":
            assert given in ({}, {"type": "application/json"}), given
            if not given:
                self.scripts.append("")
            self._in.append("json" if given else "script")
        if tag == "section":
            self._section = given.get("id") or ""
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "figcaption":
            self._title = ""
        if tag in ("td", "th", "figcaption"):
            self._in.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._in and (tag == self._in[-1] or tag == "script"):
            self._in.pop()

    def handle_data(self, data: str) -> None:
        place = self._in[-1] if self._in else ""
        if place == "script":
            self.scripts[-1] += data
        elif place == "json":
            self.figures[f"{self._section}: {self._title}"] = json.loads(data)
        else:
            self.text += data
        if place == "figcaption":
            self._title += data
        elif place in ("td", "th"):
            self.rows[-1][-1] += data

    def curves(self, title: str) -> dict[str, tuple[list[float], list[float]]]:
        """The curves of a figure that have a name: x and y of each."""
        return {
            trace["name"]: (trace["x"], trace["y"])
            for trace in self.figures[title]["data"]
            if "name" in trace
        }

    def curve(self, title: str) -> tuple[list[float], list[float]]:
        """The only curve of a figure."""
        (points,) = self.curves(title).values()
        return points


def test_the_page_is_complete_in_itself(reports: dict[str, Path]) -> None:
    for name in ("one", "two"):
        page = Page(reports[name])
        plotly, own = page.scripts
        assert plotly == get_plotlyjs() and "Plotly.react" in own
        assert {address for address in page.addresses if not address.startswith("#")} == {"data:,"}
        text = reports[name].read_text()
        assert text.count("plotly.js v") == 1, "plotly's script stands there once"
        rest = text.replace(plotly, "")
        assert len(rest) < 600_000 and "default-src 'none'" in rest
        assert "@import" not in rest and "url(" not in rest


def test_gradient_norms_of_tasks_are_a_chart_where_they_were_measured(
    tmp_path: Path, finished_run: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    assert not [chart for chart in health_charts(read_runs([str(run)])) if "every task" in chart.card.title]

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "loss" in line and line["step"] % 4 == 0:
            line["task_grad_norm"] = {"cola": 0.5 * line["step"], "rte": None}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    *_, chart = health_charts(read_runs([str(run)]))
    assert chart.card.title == "gradient norm of every task's part in the encoder, smoothed"
    (curve,) = chart.figure.data
    assert (curve.name, list(curve.x)) == ("cola", [4, 8, 12])


def test_curves_are_the_logs(reports: dict[str, Path], finished_run: Path) -> None:
    page, lines = Page(reports["one"]), training_lines(finished_run)
    assert page.curve("losses: objective")[0] == list(range(1, 13))
    for title, field in (
        ("losses: objective", "loss"),
        ("health: learning rate", "lr"),
        ("health: gradient norm before clipping", "grad_norm"),
        ("health: real tokens a second, all ranks", "tokens_per_second"),
        ("health: rank imbalance: cost of the busiest rank / mean", "rank_imbalance"),
        ("health: padding efficiency: real tokens / tokens computed", "padding_efficiency"),
    ):
        assert page.curve(title)[1] == pytest.approx([line[field] for line in lines], rel=1e-5), title
    together = {name: y for name, (_, y) in page.curves("losses: every task, smoothed").items()}
    assert list(together) == TASKS
    for task in TASKS:
        assert together[task] == pytest.approx(
            [line["task_loss"][task] for line in lines], rel=1e-5
        )  # 12 steps: nothing to smooth
    evaluations = [
        json.loads(line)
        for line in (finished_run / "metrics.jsonl").read_text().splitlines()
        if '"eval"' in line
    ]
    mnli = {name: y for name, (_, y) in page.curves("metrics: mnli").items()}
    assert mnli == {
        name: pytest.approx([line["eval"]["mnli"][name] for line in evaluations])
        for name in ("accuracy", "accuracy_mm")
    }
    assert page.curve("losses: stsb")[1] == pytest.approx(
        [line["task_loss"]["stsb"] for line in lines], rel=1e-5
    )
    assert page.curve("metrics: average of the tasks' scores")[0] == [4, 8, 12]
    assert page.curve("metrics: average of the tasks' scores")[1] == pytest.approx(
        [line["average"] for line in evaluations], rel=1e-5
    )
    assert page.curve("metrics: cola: matthews")[1] == pytest.approx(
        [line["eval"]["cola"]["matthews"] for line in evaluations]
    )


def test_results_are_the_last_evaluation_and_the_best_weights(
    reports: dict[str, Path], finished_run: Path
) -> None:
    rows = Page(reports["one"]).rows
    last = [
        json.loads(line)
        for line in (finished_run / "metrics.jsonl").read_text().splitlines()
        if '"eval"' in line
    ][-1]
    best = json.loads((finished_run / "best/mrpc/best.json").read_text())
    (row,) = [row for row in rows if row[:2] == ["mrpc", "accuracy"]]
    score = (best["metrics"]["accuracy"] + best["metrics"]["f1"]) / 2
    assert row[2:] == [f"{last['eval']['mrpc']['accuracy']:.4f}", f"{score:.4f}", str(best["step"])]
    assert ["average", "", f"{last['average']:.4f}"] in [row[:3] for row in rows]


def test_the_mixture_is_drawn_beside_the_plan(reports: dict[str, Path], finished_run: Path) -> None:
    plan = json.loads((finished_run / "plan.json").read_text())
    assert (
        plan["total_steps"] == 12 and plan["steps"] == list(range(1, 13)) and list(plan["examples"]) == TASKS
    )
    assert {task: counts[-1] for task, counts in plan["examples"].items()} == dict.fromkeys(
        TASKS, 24
    )  # 12 steps of 16, 8 tasks alike
    drawn: dict[str, int] = {}
    for line in training_lines(finished_run):
        for task, count in line["task_examples"].items():
            drawn[task] = drawn.get(task, 0) + count
    page = Page(reports["one"])
    so_far = {name: y[-1] for name, (_, y) in page.curves("mixture: examples so far").items()}
    assert so_far == drawn == dict.fromkeys(TASKS, 24)
    text = reports["one"].read_text()
    assert "cola, planned: 12.50 %" in text and "cola, drawn: 12.50 %" in text


def test_confusions_and_worst_errors_are_those_of_the_dev_sets(
    reports: dict[str, Path], finished_run: Path
) -> None:
    text, page = reports["one"].read_text(), Page(reports["one"])
    accuracy = json.loads((finished_run / "best/shop/best.json").read_text())["metrics"]["accuracy"]
    cells = re.findall(
        r"([\d,]+) of ([\d,]+) rows of (late|broken|fine) predicted as (late|broken|fine)", text
    )
    assert len(cells) == 9 and {cell[1] for cell in cells} == {"8"}
    assert sum(int(cell[0]) for cell in cells if cell[2] == cell[3]) / 24 == pytest.approx(accuracy)
    cola = re.findall(r"([\d,]+) of ([\d,]+) rows of (\w+) predicted as (?:un)?acceptable", text)
    assert sum(int(cell[0]) for cell in cola) == 41  # CoLA's first dev rows, of a file without header
    stsb = [row for row in page.rows if any("STS-B/dev.tsv" in cell for cell in row)]
    assert len(stsb) == 10 and stsb[0][3].startswith("off by ")
    gaps = [float(row[3].removeprefix("off by ")) for row in stsb]
    assert gaps == sorted(gaps, reverse=True)
    wrong = [row for row in page.rows if any("WNUT" in cell or "wnut/dev.conll" in cell for cell in row)]
    assert wrong and all(re.fullmatch(r"\d+ of \d+ words", row[3]) for row in wrong)


def test_hostile_texts_stay_texts(reports: dict[str, Path]) -> None:
    text = reports["one"].read_text()
    assert HOSTILE not in text and "&lt;script&gt;document.title" in text
    assert any(HOSTILE in cell for row in Page(reports["one"]).rows for cell in row), (
        "and are shown as they are"
    )
    assert "<b>SIGTERM" not in reports["two"].read_text()


def test_what_is_missing_is_said_and_stops_are_marked(reports: dict[str, Path]) -> None:
    page = Page(reports["two"])
    assert "other: metrics.jsonl: 1 lines cannot be read and are left out" in page.text
    assert "other: plan.json is not there" in page.text
    assert page.text.count("left out (--no_predictions): confusions and worst errors") == 2
    marks = [mark["hovertext"] for mark in page.figures["losses: objective"]["layout"]["annotations"]]
    assert marks == [
        "other: stopped after step 5 at 2026-01-02T03:04:05+00:00: rank 0: &lt;b&gt;SIGTERM&lt;/b&gt;",
        "other: went on from step 8: later steps were lost with a process, and done again",
    ]
    stops = [row[1:] for row in page.rows if row[:2] == ["other", "after step 5"]]
    assert stops == [
        ["after step 5", "stopped after step 5 at 2026-01-02T03:04:05+00:00: rank 0: <b>SIGTERM</b>"]
    ]
    assert list(page.curves("losses: objective")) == ["run", "other"]


def test_a_run_whose_data_are_gone_says_so(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(
        finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "tensorboard", "best")
    )
    recipe = (tmp_path / "run/recipe.yaml").read_text()
    (tmp_path / "run/recipe.yaml").write_text(re.sub(r"glue_dir: .*", f"glue_dir: {tmp_path}/gone", recipe))
    assert main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "report.html")]) == 0
    assert (
        "no confusions and worst errors" in capsys.readouterr().out
        and "No confusions and worst errors" in (tmp_path / "report.html").read_text()
    )


def test_folders_that_are_no_runs_and_pages_that_are_there_are_refused(
    finished_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        read_runs([str(finished_run), str(tmp_path), str(finished_run)])
    assert [problem.split(": ", 1)[1][:40] for problem in error.value.problems] == [
        "not a run folder (recipe.yaml is missing",
        "is given twice; keep one",
    ]
    (tmp_path / "report.html").write_text("mine")
    assert main(["report", str(finished_run), "--output", str(tmp_path / "report.html")]) == 2
    assert (tmp_path / "report.html").read_text() == "mine"


def test_several_runs_are_words_one_after_the_other() -> None:
    assert read_arguments(VERBS["report"], ["a", "b", "c", "--no_predictions"])["run_dir"] == ("a", "b", "c")
    assert read_arguments(VERBS["report"], ["--run_dir", "a"])["run_dir"] == ("a",)
    with pytest.raises(ConfigError, match="--run_dir: is missing"):
        read_arguments(VERBS["report"], [])


def wait_until_drawn(page: Any) -> None:
    """Figures are drawn one after the other."""
    expect(page.locator(".plot > .plot-container")).to_have_count(
        page.locator("figure.chart").count(), timeout=120_000
    )


@pytest.mark.slow
def test_the_page_opens_in_a_browser(reports: dict[str, Path]) -> None:
    said: list[str] = []
    asked: list[str] = []
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(reports["one"].as_uri())
        wait_until_drawn(page)
        assert page.title() == "Training report: run"
        boxes = page.eval_on_selector_all(
            ".plot .main-svg:first-child", "all => all.map(one => [one.clientWidth, one.clientHeight])"
        )
        assert len(boxes) > 30 and all(wide > 100 and high > 60 for wide, high in boxes)
        for width in (390, 800, 1440):
            page.set_viewport_size({"width": width, "height": 900})
            for _ in range(200):  # figures follow one after the other
                gaps = page.eval_on_selector_all(
                    ".plot",
                    "all => all.map(one => one.clientWidth - one.querySelector('.main-svg').clientWidth)",
                )
                if not any(gaps):
                    break
                page.wait_for_timeout(100)
            assert not any(gaps), "each is as wide as its card"
            assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"

        together = page.locator("figure", has_text="every task, smoothed")
        for x in (500, 520):
            together.locator(".plot").hover(position={"x": x, "y": 100})
        tip = together.locator(".hoverlayer .legend")
        expect(tip).to_be_visible()
        assert re.match(
            r"step [67]\s*cola : 0\.\d+\s*mnli : \d\.\d+", " ".join(tip.locator("text").all_text_contents())
        )

        curves = together.locator(".scatterlayer .trace .js-line")
        assert curves.count() == 8
        together.locator(".legendtoggle").first.click()
        expect(curves).to_have_count(7)

        def colors() -> tuple[str, str, str]:
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            tick, line = together.locator(".xtick text").first, curves.last
            return ground, *(
                each.evaluate(f"one => getComputedStyle(one).{what}")
                for each, what in ((tick, "fill"), (line, "stroke"))
            )

        assert colors() == ("rgb(255, 255, 255)", "rgb(92, 104, 115)", "rgb(90, 101, 112)")
        page.locator("#theme").click()
        expect(curves.last).to_have_css("stroke", "rgb(180, 190, 200)")
        assert colors() == ("rgb(20, 24, 29)", "rgb(151, 163, 175)", "rgb(180, 190, 200)")
        assert curves.count() == 7, "what was hidden stays hidden"
    assert said == [] and asked == [reports["one"].as_uri()]


@pytest.mark.slow
def test_a_figure_can_be_kept_and_the_page_printed(reports: dict[str, Path], tmp_path: Path) -> None:
    with chromium() as browser:
        page = browser.new_page(
            viewport={"width": 1440, "height": 900}, color_scheme="dark", accept_downloads=True
        )
        page.goto(reports["two"].as_uri())
        wait_until_drawn(page)
        together = page.locator("figure", has_text="objective")
        together.hover()
        with page.expect_download() as kept:
            together.locator(".modebar-btn").first.click()
        kept.value.save_as(tmp_path / "kept.svg")
        root = ElementTree.parse(tmp_path / "kept.svg").getroot()
        words = {each.text for each in root.iter("{http://www.w3.org/2000/svg}text")}
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and {"run", "other", "step"} <= words

        sizes = "all => all.map(one => one.clientWidth)"
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        on_paper = page.eval_on_selector_all(".plot .main-svg:first-child", sizes)
        assert max(on_paper) == 660 and page.evaluate("document.documentElement.dataset.theme") == "light"
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"


@pytest.mark.slow
def test_hostile_names_are_texts_in_a_browser_too(tmp_path: Path) -> None:
    """plotly reads texts as a little HTML; a name that is some is shown as it is written."""
    names = [HOSTILE, "<b>bold</b> &amp; %{x} </script>"]
    series = [Series(name=name, x=[1.0, 2.0], y=[1.0, 2.0], color="var(--s0)") for name in names]
    charts = [
        line_chart(Card(title=names[0], note=names[1]), series, marks=[(1.0, names[0])]),
        bar_chart(Card(title="bars"), {name: {other: [0.5, 0.7] for other in names} for name in names}),
        matrix_chart(Card(title="matrix"), names, [[1, 2], [3, 4]], shade="var(--s1)"),
    ]
    body = "".join(chart.markup for chart in charts)
    path = tmp_path / "page.html"
    path.write_text(page(names[0], "", [Section(name="s", title=names[0], body=body)]), encoding="utf-8")
    said: list[str] = []
    with chromium() as browser:
        opened = browser.new_page(viewport={"width": 1440, "height": 900})
        opened.on("console", lambda message: said.append(message.text))
        opened.on("pageerror", lambda error: said.append(str(error)))
        opened.goto(path.as_uri())
        wait_until_drawn(opened)
        assert opened.title() == HOSTILE and said == []
        assert opened.locator("img").count() == 0 and opened.locator("script").count() == len(charts) + 2
        for place in range(2):  # curves and bars
            assert opened.locator(".plot").nth(place).locator(".legendtext").all_text_contents() == names
        ticks = opened.locator(".plot").nth(2).locator(".ytick text").all_text_contents()
        assert ticks == [f"{name[:19]}…" for name in names]


# Parts


def test_smoothing_has_no_lag_and_keeps_gaps() -> None:
    assert smoothed([5.0, math.nan, 3.0])[::2] == [5.0, 3.0] and math.isnan(smoothed([5.0, math.nan, 3.0])[1])
    line = [float(value) for value in range(120)]
    assert smoothed(line) == line  # symmetric: a straight line stays itself; two points on either side
    step = [0.0] * 60 + [1.0] * 60
    assert smoothed(step)[57:62] == [0.0, 0.2, 0.4, 0.6, 0.8]


def test_thinning_takes_means_of_neighbours() -> None:
    assert thinned([1, 2, 3, 4, 5], [1, 3, math.nan, 4, 9], most=3) == ([1.5, 3.5, 5], [2, 4, 9])
    assert thinned([1, 2], [3, 4]) == ([1, 2], [3, 4])


def test_numbers_and_texts() -> None:
    assert [number(value) for value in (1234.5, 0.81234, 3.2e-05, 1.31e6, 0, None, math.nan)] == [
        "1,234",
        "0.8123",
        "3.2e-05",
        "1.31M",
        "0",
        "-",
        "-",
    ]
    assert escape('<a href="x">\'&\x00') == "&lt;a href=&quot;x&quot;&gt;&#x27;&amp;\ufffd"
    assert escape_label('<a href="x">\'&\x00') == '&lt;a href="x"&gt;\'&amp;\ufffd'


def test_charts_without_points_or_with_equal_ones_are_drawn() -> None:
    for ys in ([], [1.0, 1.0], [math.nan, math.nan], [0.0]):
        xs = [float(x) for x in range(len(ys))]
        chart = line_chart(Card(title="t"), [Series(name="<s>", x=xs, y=ys, color="var(--s0)")])
        (curve,) = figure_of(chart)["data"]
        assert curve["y"] == [None if math.isnan(y) else y for y in ys] and curve["name"] == "&lt;s&gt;"
        assert "NaN" not in chart.json and "<" not in chart.json

    equal = Series(name="s", x=[1.0], y=[0.8], color="var(--s0)", spread={1.0: [0.6, 1.0]})
    range_of = figure_of(line_chart(Card(title="t"), [equal]))["layout"]["yaxis"].get("range")
    assert range_of is None, "plotly takes the range in, dots and all"

    chart = bar_chart(Card(title="<t>"), {"<a>": {"<b>": [0.5, 0.7]}, "c": {}})
    shown = [text for trace in figure_of(chart)["data"] for text in trace.get("hovertext", ())]
    assert shown == ["&lt;b&gt;, &lt;a&gt;: 0.6", "&lt;b&gt;, &lt;a&gt;: 0.5", "&lt;b&gt;, &lt;a&gt;: 0.7"]


def test_no_text_ends_the_script_that_holds_it() -> None:
    hostile = "</script><script>alert(1)</script><!--"
    chart = bar_chart(Card(title=hostile, note=hostile), {hostile: {hostile: [0.5]}})
    assert chart.markup.count("</script>") == 1 and "<!--" not in chart.markup
    assert "<script>" not in chart.markup


def figure_of(chart: Chart) -> dict[str, Any]:
    return json.loads(chart.json)


def test_answers_of_spans_choices_and_entities(tiny_encoder: Path, tmp_path: Path) -> None:
    """Untrained heads on a few rows:
    counts against the metrics of the same outputs, texts against the files.
    """
    import torch

    from mtdnn_ds.config.recipe import Recipe
    from mtdnn_ds.report.task_answers import task_answers
    from mtdnn_ds.runs.evaluate import predict, scored
    from mtdnn_ds.runs.setup import loader_settings, prepare_run_data, run_model
    from mtdnn_ds.tasks.resolve import resolve_tasks

    context = "The river rises in the north and meets the sea near the old town."
    questions = [
        {
            "id": str(row),
            "question": f"{HOSTILE} where {row}?",
            "answers": [{"text": answer, "answer_start": context.index(answer)}],
        }
        for row, answer in enumerate(["in the north", "the sea", "the old town"])
    ]
    squad = {
        "version": "1.1",
        "data": [{"title": "River", "paragraphs": [{"context": context, "qas": questions}]}],
    }
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    rows = [{"q": f"{HOSTILE} {row}", "a": "one", "b": "two", "right": row % 2} for row in range(6)]
    (tmp_path / "choice.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "names.conll").write_text("Anna\tB-name\nsleeps\tO\n\nBerlin\tB-place\nis\tO\nbig\tO\n")
    files = {
        name: {split: str(tmp_path / name) for split in ("train", "dev")}
        for name in ("squad.json", "choice.jsonl", "names.conll")
    }
    choice = {"text_columns": ["q"], "choice_columns": ["a", "b"], "label_column": "right"}
    recipe = Recipe.model_validate(
        {
            "encoder": {"path": str(tiny_encoder), "max_length": 64},
            "tasks": {
                "spans": {"kind": "span", "files": files["squad.json"]},
                "choices": {"kind": "multiple_choice", "files": files["choice.jsonl"], **choice},
                "names": {
                    "kind": "token_classification",
                    "files": files["names.conll"],
                    "labels": ["O", "B-name", "I-name", "B-place", "I-place"],
                },
            },
            "train": {"steps": 1},
            "data": {"cache_dir": str(tmp_path / "cache")},
        }
    )
    specs, device = resolve_tasks(recipe), torch.device("cpu")
    data = prepare_run_data(recipe, specs)
    model = run_model(recipe, data, device=device, compute_dtype=torch.float32)
    settings = loader_settings(recipe, hidden_size=32, world_size=1, rank=0, device=device)
    wanted = [(index, "dev") for index in range(3)]
    outputs = predict(model, wanted, data, settings, device)
    metrics = scored(wanted, outputs, specs, data.examples).metrics
    found = {
        spec.name: task_answers(spec, data.examples[spec.name]["dev"], of_task)
        for spec, of_task in zip(specs, outputs, strict=True)
    }

    assert found["spans"].num_wrong == len(found["spans"].worst) > 0
    f1 = [float(row.how_wrong.removeprefix("F1 ")) for row in found["spans"].worst]
    assert f1 == sorted(f1) and (sum(f1) + 3 - len(f1)) / 3 == pytest.approx(
        metrics["spans"]["token_f1"], abs=0.01
    )
    assert {row.right for row in found["spans"].worst} <= {"in the north", "the sea", "the old town"}
    assert all(HOSTILE in dict(row.texts)["question"] for row in found["spans"].worst)

    assert found["choices"].num_wrong == round(6 * (1 - metrics["choices"]["accuracy"]))
    assert all(row.right != row.predicted and HOSTILE in row.texts[0][1] for row in found["choices"].worst)

    confusion = found["names"].confusion
    assert found["names"].labels == specs[2].labels and [sum(row) for row in confusion] == [3, 1, 0, 1, 0]
    assert found["names"].worst and {row.right for row in found["names"].worst} <= {"B-name@1", "B-place@1"}
