"""The sections of a report as markup: runs, results, charts, starts and stops, recipes.

Not the predictions (answers_section.py).

Every text that is not ours is escaped here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtdnn_ds.report import curves
from mtdnn_ds.report.answers_section import Answers, predictions_section
from mtdnn_ds.report.chart import Chart, dot_markup
from mtdnn_ds.report.mixture import mixture_charts
from mtdnn_ds.report.page import Section, page, table
from mtdnn_ds.report.runs import RunRecord
from mtdnn_ds.report.style import escape, fixed, number
from mtdnn_ds.tasks.glue import glue_table
from mtdnn_ds.tasks.metrics import task_score

_LEAD = (
    "One page, complete in itself: it can be sent and opened anywhere. Point at a curve for its numbers; "
    "click a name below one to hide it; draw over a part to magnify it, and click twice to go back."
)
_LOSSES_LEAD = (
    "Faint lines are the losses of single steps, full ones their means over a thirtieth of the run, at least "
    "five steps. A task's loss is the mean over its examples in a step."
)
_METRICS_LEAD = "Higher is better, everywhere."
_MIXTURE_LEAD = "How many examples of each task the steps held, and how many the plan had in them."
_HEALTH_LEAD = "As the runs logged them, after every step."


def report_page(runs: Sequence[RunRecord], answers: Answers) -> str:
    """The whole report of one or several runs. `answers`: of each run by its name."""
    title = f"Training report: {', '.join(run.name for run in runs)}"
    sections = [
        Section(name="runs", title=_noun(len(runs), "Run"), body=_runs(runs)),
        Section(name="results", title="Results", body=_results(runs)),
        _charts("losses", "Training losses", _LOSSES_LEAD, curves.loss_charts(runs)),
        _charts("metrics", "Development metrics", _METRICS_LEAD, curves.metric_charts(runs)),
        _charts("mixture", "Mixture", _MIXTURE_LEAD, mixture_charts(runs)),
        _charts("health", "Schedule, speed and balance", _HEALTH_LEAD, curves.health_charts(runs)),
        predictions_section(runs, answers),
        Section(name="stops", title="Starts and stops", body=_stops(runs)),
        Section(name="recipes", title="Recipes", body="".join(_recipe(run) for run in runs)),
    ]
    return page(title, f'<p class="lead">{_LEAD}</p>', sections)


def _noun(count: object, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"


def _charts(name: str, title: str, lead: str, charts: Sequence[Chart]) -> Section:
    if not charts:
        body = '<p class="missing">Nothing to draw: no run has logged any.</p>'
        return Section(name=name, title=title, body=body)

    grid = "".join(chart.markup for chart in charts)
    body = f'<p class="lead">{escape(lead)}</p><div class="grid">{grid}</div>'
    return Section(name=name, title=title, body=body)


# Runs


def _runs(runs: Sequence[RunRecord]) -> str:
    """A column a run, and what is missing of each."""
    columns = [_facts(run) for run in runs]
    rows = []
    for what in columns[0]:
        cells = [escape(facts[what]) for facts in columns]
        rows.append([f"<b>{escape(what)}</b>", *cells])
    listed = table(["", *(escape(run.name) for run in runs)], rows, aligned=False)

    missing = ""
    for run in runs:
        for note in run.notes:
            missing += f'<p class="missing">{escape(run.name)}: {escape(note)}</p>'
    return listed + missing


def _facts(run: RunRecord) -> dict[str, object]:
    recipe = run.recipe
    stage, precision = _of_last_start(run, "zero_stage"), _of_last_start(run, "precision")
    started: object = "unknown"
    if run.starts:
        started = run.starts[0].get("started", "unknown")

    return {
        "folder": run.folder.path,
        "encoder": recipe.encoder.path,
        "tasks": f"{len(run.tasks)}: {', '.join(run.tasks)}",
        "steps": _steps(run),
        "examples a step": recipe.batch.examples_per_step,
        "mixture": _mixture(run),
        "optimizer": f"{recipe.optimizer.name}, lr {number(recipe.optimizer.lr)}, {recipe.schedule.name}",
        "seed": recipe.train.seed,
        "ranks": _of_last_start(run, "world_size"),
        "ZeRO stage, precision": f"{stage}, {precision}",
        "real tokens": number(float(sum(line.get("tokens", 0) for line in run.steps))),
        "time in steps": _duration(sum(line.get("seconds") or 0.0 for line in run.steps)),
        "started (UTC)": started,
        "versions": _versions(run),
    }


def _steps(run: RunRecord) -> str:
    planned = run.recipe.train.steps
    if run.plan is not None:
        planned = run.plan["total_steps"]

    if planned is None or planned == run.last_step:
        return f"{run.last_step:,}"
    return f"{run.last_step:,} of {planned:,}: not at its end"


def _mixture(run: RunRecord) -> str:
    mixture = run.recipe.mixture
    words = [mixture.rates if isinstance(mixture.rates, str) else "own rates", mixture.mixing]
    if mixture.mixing == "per_step":
        words.append(mixture.order)
    if mixture.only_task is not None:
        words.append(f"of it {mixture.only_task} alone")
    return ", ".join(words)


def _of_last_start(run: RunRecord, key: str) -> str:
    """What environment.json of the last start says of its ranks."""
    if not run.starts:
        return "unknown"
    return str(_topology(run.starts[-1]).get(key, "unknown"))


def _topology(start: Mapping[str, object]) -> Mapping[str, object]:
    topology = start.get("topology")
    return topology if isinstance(topology, Mapping) else {}


def _versions(run: RunRecord) -> str:
    if not run.starts:
        return "unknown"

    start = run.starts[-1]
    packages = start.get("packages", {})
    torch, deepspeed = packages.get("torch", "?"), packages.get("deepspeed", "?")
    versions = f"mtdnn_ds {start.get('mtdnn_ds', '?')}, torch {torch}, deepspeed {deepspeed}"

    git = start.get("git")
    if git:
        versions += f", commit {str(git.get('commit', ''))[:10]}"
        if git.get("uncommitted_changes"):
            versions += " with changes"
    return versions


def _duration(seconds: float) -> str:
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {seconds % 60:.0f} s"
    return f"{seconds:.1f} s"


# Results


def _results(runs: Sequence[RunRecord]) -> str:
    """A row for each metric of each task: at the end, and where the task was best."""
    rows = []
    for task, shade in curves.task_colors(runs).items():
        rows += _task_results(runs, task, shade)
    if not rows:
        return '<p class="missing">No evaluation was logged: there are no results.</p>'

    header = ["task", "metric"]
    averages = ["<b>average</b>", ""]
    for run in runs:
        name = f"{escape(run.name)}: " if len(runs) > 1 else ""
        header += [f"{name}last", f"{name}best score", f"{name}at step"]
        average = _last_evaluation(run).get("average")
        averages += [f"<b>{fixed(average)}</b>", *_best_of(run, "average")]

    caption = (
        "dev metrics at the last evaluation; a task's best score is the mean of its metrics where that was "
        "highest (best/TASK in the run folder)"
    )
    glue = [_glue(run, several=len(runs) > 1) for run in runs]
    return table(header, [*rows, averages], caption=caption) + "".join(glue)


def _task_results(runs: Sequence[RunRecord], task: str, shade: str) -> list[list[str]]:
    """Rows of a task; the first one has its name and its best score."""
    last = [_last_evaluation(run).get("eval", {}).get(task, {}) for run in runs]
    name = f"{dot_markup(shade)}{escape(task)}"
    best = [_best_of(run, task) for run in runs]

    rows = []
    for metric in dict.fromkeys(metric for values in last for metric in values):
        row = [name, escape(metric)]
        for values, of_run in zip(last, best, strict=True):
            row += [fixed(values.get(metric)), *of_run]
        rows.append(row)
        name, best = "", [("", "")] * len(runs)
    return rows


def _last_evaluation(run: RunRecord) -> Mapping[str, Any]:
    """Empty if there is none."""
    if not run.evaluations:
        return {}
    return run.evaluations[-1]


def _best_of(run: RunRecord, task: str) -> tuple[str, str]:
    """Score and step of best/TASK; of best/average the mean of the tasks' scores."""
    record = run.best.get(task)
    if record is None or not isinstance(record.get("metrics"), Mapping) or not record["metrics"]:
        return "-", "-"

    metrics = record["metrics"]
    if task == "average":
        score = sum(task_score(values) for values in metrics.values()) / len(metrics)
    else:
        score = task_score(metrics)
    return fixed(score), f"{record.get('step', 0):,}"


def _glue(run: RunRecord, *, several: bool) -> str:
    text = glue_table(_last_evaluation(run).get("eval", {}))
    if text is None:
        return ""

    name = f"{run.name}, " if several else ""
    note = f"{escape(name)}dev sets at the last evaluation, in percent"
    return f'<h3>GLUE\'s table</h3><p class="note">{note}</p><pre>{escape(text)}</pre>'


# Starts and stops, recipes


def _stops(runs: Sequence[RunRecord]) -> str:
    rows = []
    for run in runs:
        for start in run.starts:
            rows.append([run.name, str(start.get("started", "")), f"started on {_ranks(start)}"])
        for step, words in run.marks:
            rows.append([run.name, f"after step {step:,}", words])
    if not rows:
        return '<p class="missing">No run says when it was started.</p>'

    listed = table(["run", "when", "what"], [[escape(cell) for cell in row] for row in rows], aligned=False)
    if any(run.marks for run in runs):
        return listed
    return listed + '<p class="note">No run was stopped or lost a process.</p>'


def _ranks(start: Mapping[str, object]) -> str:
    ranks = _topology(start).get("world_size", "?")
    command = start.get("command", [])
    words = " ".join(map(str, command))  # type: ignore[call-overload]
    return f"{ranks} {_noun(ranks, 'rank')}, host {start.get('host', 'unknown')}: {words}"


def _recipe(run: RunRecord) -> str:
    summary = f"<summary>{escape(run.name)}/recipe.yaml</summary>"
    return f"<details>{summary}<pre>{escape(run.recipe_yaml)}</pre></details>"
