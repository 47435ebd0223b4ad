"""A table's results in words: means with spread, and differences seed by seed. Pure; trains nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.learning.runs import Result
from benchmarks.learning.tables import Table
from mtdnn_ds.report.paired import paired_difference
from mtdnn_ds.report.tables import mean_and_spread
from mtdnn_ds.tasks.metrics import task_score

Place = tuple[tuple[str, str | int], ...]


def summary(table: Table, results: Sequence[Result]) -> Iterator[str]:
    """Lines of a Markdown table: a row for each way, task and place, the difference from the reference beside
    it."""
    yield "| way | task | at | score | runs | difference | 95 % interval | |"
    yield "|---|---|---|---|---|---|---|---|"
    ways = list(dict.fromkeys(result.way for result in results))
    for task in table.scored:
        for place in _places(results):
            of_reference = _scores(results, table.reference, task, place)
            for way in ways:
                of_way = _scores(results, way, task, place)
                if not of_way:
                    continue

                cells = [way, task, _written(place), mean_and_spread(list(of_way.values())), str(len(of_way))]
                cells += _difference(of_way, of_reference, is_reference=way == table.reference)
                yield f"| {' | '.join(cells)} |"


def forgetting(table: Table, results: Sequence[Result]) -> Iterator[str]:
    """Lines of a Markdown table of the runs that trained table.scored one after the other, scored after each
    block: a task's score after its own block minus that after the last. Nothing where there are no such runs.
    """
    in_turn = [result for result in results if result.earlier]
    if not in_turn:
        return

    yield "| task | after its own block | after the last | forgotten | 95 % interval | |"
    yield "|---|---|---|---|---|---|"
    for block, task in enumerate(table.scored[:-1]):
        own = [task_score(dict([*result.earlier.values()][block][task])) for result in in_turn]
        last = [task_score(dict(result.scores[task])) for result in in_turn]
        paired = paired_difference(own, last)
        cells = [task, mean_and_spread(own), mean_and_spread(last)]
        cells += [paired.mean_text, paired.interval_text, paired.verdict]
        yield f"| {' | '.join(cells)} |"


def _difference(
    of_way: dict[Place, float], of_reference: dict[Place, float], *, is_reference: bool
) -> list[str]:
    """Mean and spread of the paired differences, their interval, and what it says."""
    pairs = [key for key in of_way if key in of_reference]
    if is_reference or not pairs:
        return ["", "", ""]
    paired = paired_difference([of_way[key] for key in pairs], [of_reference[key] for key in pairs])
    return [paired.mean_text, paired.interval_text, paired.verdict]


def _scores(results: Sequence[Result], way: str, task: str, place: Place) -> dict[Place, float]:
    """(Seed and sampling) -> score."""
    found = {}
    for result in results:
        if result.way == way and _place(result) == place and task in result.scores:
            pair = (("seed", result.seed), ("sampling", result.at.get("sampling", 0)))
            found[pair] = task_score(dict(result.scores[task]))
    return found


def _places(results: Sequence[Result]) -> list[Place]:
    return list(dict.fromkeys(_place(result) for result in results))


def _place(result: Result) -> Place:
    return tuple((key, value) for key, value in result.at.items() if key not in ("sampling", "task"))


def _written(place: Place) -> str:
    return ", ".join(f"{key} {value}" for key, value in place)
