"""What compare found: each way's scores, and together - alone seed by seed, as CSV, page and tables. Trains
nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtdnn_ds.experiments.trials import Scores
    from mtdnn_ds.report.paired import PairedDifference

log = logging.getLogger(__name__)

WAYS = ALONE, AFTER_BLOCK, SEQUENCE, TOGETHER = (
    "alone",
    "in sequence, after its own block",
    "in sequence, at the end",
    "together",
)
AVERAGE = "average"  # of all tasks; none has this name (tasks/resolve.py)

ScoresByWay = dict[str, dict[str, list[float]]]  # way -> task -> one score a seed


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFacts:
    """What a task's scores rest on."""

    updates: int  # alone and together: steps that hold examples of it
    sequence_updates: int  # in sequence
    block_end: int  # in sequence: the step in which its block ends
    dev_rows: int


def report(
    folder: Path, facts: Mapping[str, TaskFacts], seeds: Sequence[int], results: Mapping[str, Scores]
) -> None:
    """comparison.csv, differences.csv and comparison.html in `folder`, and the same numbers as tables.

    `results`: the scores of each run by its name.
    """
    from mtdnn_ds.report.experiments import write_comparison
    from mtdnn_ds.report.paired import paired_difference
    from mtdnn_ds.report.tables import write_csv

    scores = _scores_by_way(facts, seeds, results)
    rows = [
        {"task": task, "way": way, "seed": seed, "score": score}
        for way, of_way in scores.items()
        for task, values in of_way.items()
        for seed, score in zip(seeds, values, strict=True)
    ]
    write_csv(folder / "comparison.csv", rows)

    everything = _with_average(scores)
    differences = {
        task: paired_difference(everything[TOGETHER][task], everything[ALONE][task])
        for task in everything[ALONE]
    }
    write_csv(
        folder / "differences.csv", [_row(task, facts.get(task), of) for task, of in differences.items()]
    )
    dev_rows = {task: of_task.dev_rows for task, of_task in facts.items()}
    page = write_comparison(
        folder,
        scores,
        differences=differences,
        dev_rows=dev_rows,
        title=f"equal updates, {len(seeds)} seeds",
    )

    log.info(f"\ndev score (mean of a task's metrics), mean and standard deviation over {len(seeds)} seeds:")
    for line in _score_lines(everything):
        log.info(line)
    log.info("forgets: after its block - end of sequence")
    log.info("\ntogether - alone, seed by seed, at equal updates: mean, standard deviation, 95 % t-interval:")
    for line in _difference_lines(facts, differences):
        log.info(line)
    for line in _notes(facts):
        log.info(line)
    log.info(f"\nwritten: {folder / 'comparison.csv'}, {folder / 'differences.csv'} and {page}")


def _scores_by_way(
    facts: Mapping[str, TaskFacts], seeds: Sequence[int], results: Mapping[str, Scores]
) -> ScoresByWay:
    def last(trial: str, task: str) -> float:
        scores = results[trial]
        return scores[max(scores)][task]

    by_way: ScoresByWay = {way: {task: [] for task in facts} for way in WAYS}
    for seed in seeds:
        sequence = f"sequence_seed_{seed}"
        for task, of_task in facts.items():
            by_way[ALONE][task].append(last(f"alone_{task}_seed_{seed}", task))
            by_way[AFTER_BLOCK][task].append(results[sequence][of_task.block_end][task])
            by_way[SEQUENCE][task].append(last(sequence, task))
            by_way[TOGETHER][task].append(last(f"together_seed_{seed}", task))
    return by_way


def _with_average(scores: ScoresByWay) -> ScoresByWay:
    """With the mean over tasks, seed by seed, as one more task."""
    result = {}
    for way, of_way in scores.items():
        means = [sum(of_seed) / len(of_way) for of_seed in zip(*of_way.values(), strict=True)]
        result[way] = {**of_way, AVERAGE: means}
    return result


def _row(task: str, facts: TaskFacts | None, difference: PairedDifference) -> dict[str, object]:
    """A line of differences.csv; what there is not stays empty."""
    low, high = difference.interval or ("", "")
    deviation = "" if difference.deviation is None else difference.deviation
    return {
        "task": task,
        "dev_rows": "" if facts is None else facts.dev_rows,
        "updates": "" if facts is None else facts.updates,
        "seeds": difference.num_pairs,
        "mean": difference.mean,
        "deviation": deviation,
        "low": low,
        "high": high,
        "verdict": difference.verdict,
    }


def _score_lines(scores: ScoresByWay) -> list[str]:
    """A line a task: all ways, and what is forgotten in sequence."""
    from mtdnn_ds.report.tables import mean_and_spread

    width = max(len(task) for task in scores[ALONE])
    heads = "  ".join(f"{head:>17}" for head in (ALONE, "after its block", "end of sequence", TOGETHER))
    lines = [f"{'task':<{width}}  {heads}  {'forgets':>8}"]
    for task, before in scores[AFTER_BLOCK].items():
        cells = "  ".join(f"{mean_and_spread(scores[way][task]):>17}" for way in WAYS)
        forgets = (sum(before) - sum(scores[SEQUENCE][task])) / len(before)
        lines.append(f"{task:<{width}}  {cells}  {forgets:>+8.4f}")
    return lines


def _difference_lines(
    facts: Mapping[str, TaskFacts], differences: Mapping[str, PairedDifference]
) -> list[str]:
    width = max(len(task) for task in differences)
    lines = [
        f"{'task':<{width}}  {'dev rows':>8}  {'updates':>7}  {'together - alone':>18}  "
        f"{'95 % interval':>18}  together"
    ]
    for task, difference in differences.items():
        of_task = facts.get(task)
        rows, updates = ("", "") if of_task is None else (f"{of_task.dev_rows:,}", f"{of_task.updates:,}")
        lines.append(
            f"{task:<{width}}  {rows:>8}  {updates:>7}  {difference.mean_text:>18}  "
            f"{difference.interval_text:>18}  {difference.verdict}"
        )
    return lines


def _notes(facts: Mapping[str, TaskFacts]) -> list[str]:
    """That a sequence has fewer updates, where it does by more than the rounding to whole steps."""
    fewer = [
        f"{task} {of_task.sequence_updates:,} instead of {of_task.updates:,}"
        for task, of_task in facts.items()
        if of_task.sequence_updates < of_task.updates - 2
    ]
    if not fewer:
        return []
    return [
        f"in sequence a task has fewer updates, of whole steps: {', '.join(fewer)}; its scores are not those "
        "of equal updates (with mixture.mixing=per_step they would be)"
    ]
