"""The sections of a report as markup: runs, results, curves, predictions, what is missing. Every text that is not ours is escaped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtdnn_ds.report import curves
from mtdnn_ds.report.chart import Chart, figure
from mtdnn_ds.report.matrices import matrix_chart, scatter_chart
from mtdnn_ds.report.page import Section, page, table
from mtdnn_ds.report.predictions import TaskAnswers
from mtdnn_ds.report.runs import RunRecord
from mtdnn_ds.report.svg import escape, fixed, number
from mtdnn_ds.tasks.glue import glue_table
from mtdnn_ds.tasks.metrics import task_score

Answers = Mapping[str, Mapping[str, TaskAnswers] | str]  # run -> task -> answers, or why there are none


def report_page(runs: Sequence[RunRecord], answers: Answers) -> str:
    """The whole report of one or several runs."""
    title = f"Training report: {', '.join(run.name for run in runs)}"
    sections = [
        Section(name="runs", title="Runs" if len(runs) > 1 else "Run", body=_runs(runs)),
        Section(name="results", title="Results", body=_results(runs)),
        _charts("losses", "Training losses", "Faint lines are the losses of single steps, full ones their means over a thirtieth of the run, at least five steps. A task's loss is the mean over its examples in a step.", curves.loss_charts(runs)),
        _charts("metrics", "Development metrics", "Higher is better, everywhere.", curves.metric_charts(runs)),
        _charts("mixture", "Mixture", "How many examples of each task the steps held, and how many the plan had in them.", curves.mixture_charts(runs)),
        _charts("health", "Schedule, speed and balance", "As the runs logged them, after every step.", curves.health_charts(runs)),
        Section(name="predictions", title="Predictions", body=_predictions(runs, answers)),
        Section(name="stops", title="Starts and stops", body=_stops(runs)),
        Section(name="recipes", title="Recipes", body="".join(_recipe(run) for run in runs)),
    ]  # fmt: skip
    lead = '<p class="lead">One page, complete in itself: it can be sent and opened anywhere. Point at a curve for its numbers; click a name below one to hide it.</p>'
    return page(title, lead, sections)


def _charts(name: str, title: str, lead: str, charts: Sequence[Chart]) -> Section:
    if not charts:
        return Section(
            name=name, title=title, body='<p class="missing">Nothing to draw: no run has logged any.</p>'
        )
    return Section(
        name=name,
        title=title,
        body=f'<p class="lead">{escape(lead)}</p><div class="grid">{"".join(figure(chart) for chart in charts)}</div>',
    )


def _runs(runs: Sequence[RunRecord]) -> str:
    rows: list[list[str]] = []

    def add(what: str, cells: Sequence[object]) -> None:
        rows.append([f"<b>{escape(what)}</b>", *(escape(cell) for cell in cells)])

    add("folder", [run.folder.path for run in runs])
    add("encoder", [run.recipe.encoder.path for run in runs])
    add("tasks", [f"{len(run.tasks)}: {', '.join(run.tasks)}" for run in runs])
    add("steps", [_steps(run) for run in runs])
    add("examples a step", [run.recipe.batch.examples_per_step for run in runs])
    add("mixture", [f"{_rates(run)}, {run.recipe.mixture.mixing}" for run in runs])
    add(
        "optimizer",
        [
            f"{run.recipe.optimizer.name}, lr {number(run.recipe.optimizer.lr)}, {run.recipe.schedule.name}"
            for run in runs
        ],
    )
    add("seed", [run.recipe.train.seed for run in runs])
    add("ranks", [_of_start(run, "topology", "world_size") for run in runs])
    add(
        "ZeRO stage, precision",
        [
            f"{_of_start(run, 'topology', 'zero_stage')}, {_of_start(run, 'topology', 'precision')}"
            for run in runs
        ],
    )
    add("real tokens", [number(float(sum(line.get("tokens", 0) for line in run.steps))) for run in runs])
    add("time in steps", [_duration(sum(line.get("seconds") or 0.0 for line in run.steps)) for run in runs])
    add(
        "started (UTC)",
        [str(run.starts[0].get("started", "unknown")) if run.starts else "unknown" for run in runs],
    )
    add("versions", [_versions(run) for run in runs])
    missing = "".join(
        f'<p class="missing">{escape(run.name)}: {escape(note)}</p>' for run in runs for note in run.notes
    )
    return table(["", *(escape(run.name) for run in runs)], rows, aligned=False) + missing


def _steps(run: RunRecord) -> str:
    planned = run.plan["total_steps"] if run.plan is not None else run.recipe.train.steps
    if planned is None or planned == run.last_step:
        return f"{run.last_step:,}"
    return f"{run.last_step:,} of {planned:,}: not at its end"


def _rates(run: RunRecord) -> str:
    return run.recipe.mixture.rates if isinstance(run.recipe.mixture.rates, str) else "own rates"


def _of_start(run: RunRecord, *keys: str) -> str:
    value: object = run.starts[-1] if run.starts else {}
    for key in keys:
        value = value.get(key, "unknown") if isinstance(value, Mapping) else "unknown"
    return str(value)


def _versions(run: RunRecord) -> str:
    if not run.starts:
        return "unknown"
    packages = run.starts[-1].get("packages", {})
    git = run.starts[-1].get("git") or {}
    commit = (
        f", commit {str(git.get('commit', ''))[:10]}{' with changes' if git.get('uncommitted_changes') else ''}"
        if git
        else ""
    )
    return f"mtdnn_ds {run.starts[-1].get('mtdnn_ds', '?')}, torch {packages.get('torch', '?')}, deepspeed {packages.get('deepspeed', '?')}{commit}"


def _duration(seconds: float) -> str:
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {seconds % 60:.0f} s"
        if minutes
        else f"{seconds:.1f} s"
    )


def _results(runs: Sequence[RunRecord]) -> str:
    """A row for each metric of each task: at the end, and where the task was best."""
    colors = curves.task_colors(runs)
    header = ["task", "metric"]
    for run in runs:
        name = f"{escape(run.name)}: " if len(runs) > 1 else ""
        header += [f"{name}last", f"{name}best score", f"{name}at step"]
    rows = []
    for task, shade in colors.items():
        last = [run.evaluations[-1]["eval"].get(task, {}) if run.evaluations else {} for run in runs]
        for index, metric in enumerate(dict.fromkeys(name for values in last for name in values)):
            dot = f'<i class="dot" style="background:{shade}"></i>'
            row = [f"{dot}{escape(task)}" if index == 0 else "", escape(metric)]
            for run, values in zip(runs, last, strict=True):
                row += [fixed(values.get(metric)), *(_best_of(run, task) if index == 0 else ("", ""))]
            rows.append(row)
    averages = ["<b>average</b>", ""]
    for run in runs:
        averages += [
            f"<b>{fixed(run.evaluations[-1]['average'] if run.evaluations else None)}</b>",
            *_best_of(run, "average"),
        ]
    if not rows:
        return '<p class="missing">No evaluation was logged: there are no results.</p>'
    caption = "dev metrics at the last evaluation; a task's best score is the mean of its metrics where that was highest (best/TASK in the run folder)"
    return table(header, [*rows, averages], caption=caption) + "".join(
        _glue(run, several=len(runs) > 1) for run in runs
    )


def _best_of(run: RunRecord, task: str) -> tuple[str, str]:
    """Score and step of best/TASK; of best/average the mean of the tasks' scores."""
    record = run.best.get(task)
    if record is None or not isinstance(record.get("metrics"), Mapping) or not record["metrics"]:
        return "-", "-"
    metrics = record["metrics"]
    score = (
        sum(task_score(values) for values in metrics.values()) / len(metrics)
        if task == "average"
        else task_score(metrics)
    )
    return fixed(score), f"{record.get('step', 0):,}"


def _glue(run: RunRecord, *, several: bool) -> str:
    text = glue_table(run.evaluations[-1]["eval"]) if run.evaluations else None
    if text is None:
        return ""
    name = f"{run.name}, " if several else ""
    return f'<h3>GLUE\'s table</h3><p class="note">{escape(name)}dev sets at the last evaluation, in percent</p><pre>{escape(text)}</pre>'


def _predictions(runs: Sequence[RunRecord], answers: Answers) -> str:
    colors = curves.task_colors(runs)
    parts = []
    for run in runs:
        own = answers[run.name]
        parts.append(f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else "")
        if isinstance(own, str):
            parts.append(f'<p class="missing">{escape(own)}</p>')
            continue
        charts = [
            chart
            for task, of_task in own.items()
            if (chart := _picture(task, of_task, colors[task])) is not None
        ]
        parts.append(
            f'<p class="lead">Each task on its dev set, by its own best weights.</p><div class="grid">{"".join(figure(chart) for chart in charts)}</div>'
        )
        parts += [_worst(task, of_task, colors[task]) for task, of_task in own.items()]
    return "".join(parts)


def _picture(task: str, answers: TaskAnswers, shade: str) -> Chart | None:
    asked = (
        f"{answers.num_asked:,} of {answers.num_rows:,} rows"
        if answers.num_asked < answers.num_rows
        else f"{answers.num_rows:,} rows"
    )
    wrong = f", {answers.num_wrong:,} wrong" if answers.num_wrong is not None else ""
    note = f"{asked}{wrong}; weights: {answers.weights}" + (f"; {answers.note}" if answers.note else "")
    if answers.confusion:
        return matrix_chart(task, answers.labels, answers.confusion, shade=shade, note=note, dot=shade)
    if answers.scores is not None:
        return scatter_chart(
            task,
            *answers.scores,
            shade=shade,
            x_label="true score",
            y_label="predicted",
            note=note,
            dot=shade,
        )
    return None


def _worst(task: str, answers: TaskAnswers, shade: str) -> str:
    dot = f'<i class="dot" style="background:{shade}"></i>'
    if not answers.worst:
        why = answers.note or "no row is wrong"
        return f'<h3>{dot}{escape(task)}</h3><p class="note">{escape(why)}</p>'
    rows = []
    for row in answers.worst:
        keyed = len(row.texts) > 1
        texts = "\n".join(
            (f'<span class="key">{escape(column)}</span>' if keyed else "") + escape(text)
            for column, text in row.texts
        )
        rows.append(
            [
                f"{texts}<small>{escape(row.place)}</small>",
                escape(row.right),
                escape(row.predicted),
                escape(row.how_wrong),
            ]
        )
    listed = table(["text", "right", "predicted", "how wrong"], rows, aligned=False)
    return (
        f'<details class="words" open><summary>{dot}{escape(task)}: worst errors</summary>{listed}</details>'
    )


def _stops(runs: Sequence[RunRecord]) -> str:
    rows = []
    for run in runs:
        starts = [(str(start.get("started", "")), f"started on {_ranks(start)}") for start in run.starts]
        rows += [[escape(run.name), escape(when), escape(what)] for when, what in starts]
        rows += [[escape(run.name), f"after step {step:,}", escape(words)] for step, words in run.marks]
    if not rows:
        return '<p class="missing">No run says when it was started.</p>'
    note = (
        "" if any(run.marks for run in runs) else '<p class="note">No run was stopped or lost a process.</p>'
    )
    return table(["run", "when", "what"], rows, aligned=False) + note


def _ranks(start: Mapping[str, object]) -> str:
    topology = start.get("topology")
    ranks = topology.get("world_size", "?") if isinstance(topology, Mapping) else "?"
    return f"{ranks} rank{'' if ranks == 1 else 's'}, host {start.get('host', 'unknown')}: {' '.join(map(str, start.get('command', [])))}"  # type: ignore[call-overload]


def _recipe(run: RunRecord) -> str:
    return f"<details><summary>{escape(run.name)}/recipe.yaml</summary><pre>{escape(run.recipe_yaml)}</pre></details>"
