"""The section of a report on predictions: a picture of each task, and its worst errors.

Predicts nothing (predictions.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtdnn_ds.report.chart import Card, Chart, dot_markup
from mtdnn_ds.report.curves import task_colors
from mtdnn_ds.report.matrices import matrix_chart, scatter_chart
from mtdnn_ds.report.page import Section, table
from mtdnn_ds.report.runs import RunRecord
from mtdnn_ds.report.style import escape
from mtdnn_ds.report.task_answers import TaskAnswers
from mtdnn_ds.report.wrong_rows import WrongRow

Answers = Mapping[str, Mapping[str, TaskAnswers] | str]  # run -> task -> answers, or why there are none


def predictions_section(runs: Sequence[RunRecord], answers: Answers) -> Section:
    """Each run's tasks, or why there is nothing."""
    colors = task_colors(runs)
    body = ""
    for run in runs:
        if len(runs) > 1:
            body += f"<h3>{escape(run.name)}</h3>"

        of_run = answers[run.name]
        if isinstance(of_run, str):
            body += f'<p class="missing">{escape(of_run)}</p>'
        else:
            body += _tasks(of_run, colors)
    return Section(name="predictions", title="Predictions", body=body)


def _tasks(answers: Mapping[str, TaskAnswers], colors: Mapping[str, str]) -> str:
    charts = [_picture(task, of_task, colors[task]) for task, of_task in answers.items()]
    grid = "".join(chart.markup for chart in charts if chart is not None)
    worst = "".join(_worst(task, of_task, colors[task]) for task, of_task in answers.items())
    lead = '<p class="lead">Each task on its dev set, by its own best weights.</p>'
    return f'{lead}<div class="grid">{grid}</div>{worst}'


def _picture(task: str, answers: TaskAnswers, shade: str) -> Chart | None:
    card = Card(title=task, note=_note(answers), dot=shade)
    if answers.confusion:
        return matrix_chart(card, answers.labels, answers.confusion, shade=shade)
    if answers.scores is not None:
        return scatter_chart(card, *answers.scores, shade=shade)
    return None


def _note(answers: TaskAnswers) -> str:
    """`41 rows, 11 wrong; weights: best/cola`"""
    note = f"{answers.num_rows:,} rows"
    if answers.num_asked < answers.num_rows:
        note = f"{answers.num_asked:,} of {note}"
    if answers.num_wrong is not None:
        note += f", {answers.num_wrong:,} wrong"

    note += f"; weights: {answers.weights}"
    if answers.note:
        note += f"; {answers.note}"
    return note


def _worst(task: str, answers: TaskAnswers, shade: str) -> str:
    name = dot_markup(shade) + escape(task)
    if not answers.worst:
        why = answers.note or "no row is wrong"
        return f'<h3>{name}</h3><p class="note">{escape(why)}</p>'

    rows = [
        [_texts(row), escape(row.right), escape(row.predicted), escape(row.how_wrong)]
        for row in answers.worst
    ]
    listed = table(["text", "right", "predicted", "how wrong"], rows, aligned=False)
    return f'<details class="words" open><summary>{name}: worst errors</summary>{listed}</details>'


def _texts(row: WrongRow) -> str:
    """The texts of a row, with their columns if there are several, and where it stands."""
    lines = []
    for column, text in row.texts:
        key = f'<span class="key">{escape(column)}</span>' if len(row.texts) > 1 else ""
        lines.append(key + escape(text))

    texts = "\n".join(lines)
    return f"{texts}<small>{escape(row.place)}</small>"
