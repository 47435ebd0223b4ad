"""MultiTaskModel: a trained model in Python, `MultiTaskModel.from_pretrained(path).predict(texts)`. Opens folders, answers texts; trains nothing.

Every text runs through the encoder once for all tasks that read it the same way; with soft sharing once for each copy of the encoder.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from mtdnn_ds.config.encoder_path import resolve_encoder_path
from mtdnn_ds.config.errors import ConfigError, DataError
from mtdnn_ds.data.cache.tokenize import load_tokenizer, special_tokens, word_prefix
from mtdnn_ds.data.rows.checked import CheckedRow
from mtdnn_ds.data.sources.lines import RowProblem
from mtdnn_ds.predict.answers import Answer, answers_of
from mtdnn_ds.predict.inputs import asked_tasks, needs_of, read_as, rows_of, task_input
from mtdnn_ds.predict.passes import lanes_of, micro_batches, run_passes
from mtdnn_ds.predict.sets import Tokenizing, set_of_view, truncated_rows
from mtdnn_ds.predict.views import View, parsed, views_of
from mtdnn_ds.runs.load import LoadedRun
from mtdnn_ds.runs.model_folder import default_checkpoint, open_model

log = logging.getLogger("mtdnn_ds")

Tasks = Sequence[str] | str
Pooling = Literal["cls", "mean"]
_MOST_VIEWS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """Answers of some rows, and which rows lost tokens to encoder.max_length."""

    answers: list[dict[str, Answer]]
    truncated: list[bool]


class MultiTaskModel:
    """One encoder and the heads of its tasks, in evaluation mode. Not safe for calls from several threads at once."""

    def __init__(self, loaded: LoadedRun) -> None:
        self.recipe, self.specs, self.layout, self.net = (
            loaded.recipe,
            loaded.specs,
            loaded.layout,
            loaded.model.eval(),
        )
        self.settings, self.device, self.sharing = loaded.settings, loaded.device, loaded.settings.sharing
        path = resolve_encoder_path(self.recipe.encoder.tokenizer or self.recipe.encoder.path)
        tokenizer = load_tokenizer(path, trust_remote_code=self.recipe.encoder.trust_remote_code)
        self.tokenizing = Tokenizing(
            tokenizer=tokenizer, specials=special_tokens(tokenizer), max_length=self.recipe.encoder.max_length
        )  # fmt: skip
        self.lanes = lanes_of(len(self.specs), self.sharing)
        self.inputs = tuple(task_input(spec, self.recipe) for spec in self.specs)
        self._word_prefix = (
            word_prefix(tokenizer) if any(reads and reads.kind == "words" for reads in self.inputs) else ""
        )
        self._views: dict[Any, tuple[View, ...]] = {}
        self.speaks = True  # says once what is left out; a service does not
        self._said: set[str] = set()

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        checkpoint: str | None = None,
        *,
        device: str | torch.device | None = None,
        trust_plugins: bool = False,
    ) -> MultiTaskModel:
        """The model in a run folder, or in an exported folder of the whole model.

        `checkpoint`: best/average, best/TASK, step_N or latest; None: the best on average, or the latest of a run without evaluations.
        `device` None: a GPU if there is one. `trust_plugins`: an exported folder may run its own Python files (kinds of the user's own).
        Raises ConfigError and CheckpointError.
        """
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(
            open_model(
                str(path),
                checkpoint or default_checkpoint(str(path)),
                device=where,
                trust_plugins=trust_plugins,
            )
        )

    @property
    def task_names(self) -> tuple[str, ...]:
        """All tasks that it can answer."""
        return tuple(
            spec.name for spec, reads in zip(self.specs, self.inputs, strict=True) if reads is not None
        )

    def predict(
        self, texts: Sequence[Any], tasks: Tasks = "all", *, max_tokens: int | None = None
    ) -> list[dict[str, Answer]]:
        """For each text, {task: answer}; what an answer holds is said in predict/answers.py.

        `texts`: str, (str, str) pairs, or dicts with a task's columns. `tasks`: names, or "all" that read such texts. `max_tokens`: of a
        micro-batch, the training run's if None. Raises ConfigError for unknown tasks and DataError for texts that cannot be used.
        """
        rows = rows_of(texts)
        asked = asked_tasks(tasks, self.specs, "tasks")
        return self.answer(rows, [asked] * len(rows), max_tokens=max_tokens).answers

    def embed(
        self, texts: Sequence[Any], pooling: Pooling = "cls", *, layer: int = -1, task: str | None = None
    ) -> np.ndarray:
        """(texts, hidden size) float32: hidden state of the first token, or the mean over all tokens, special ones included.

        `layer`: as transformers counts hidden_states, -1 the last. `task`: with soft or low-rank sharing, whose encoder it is.
        """
        from mtdnn_ds.predict.embedding import embed

        return embed(self, texts, pooling, layer=layer, task=task)

    def answer(
        self,
        rows: Sequence[Mapping[str, Any]],
        asked: Sequence[tuple[int, ...] | None],
        *,
        max_tokens: int | None = None,
    ) -> Answered:
        """The answers to rows, each asked for its own tasks (None: all that fit it), in one pass over all of them."""
        views_of_row = [self.views(row, tasks) for row, tasks in zip(rows, asked, strict=True)]
        groups: dict[int, list[int]] = {}
        for number, views in enumerate(views_of_row):
            groups.setdefault(id(views), []).append(number)
        numbers_of_set: list[list[int]] = []
        checked_of_set: list[list[CheckedRow]] = []
        views_of_set: list[View] = []
        problems = []
        for members in groups.values():
            views = views_of_row[members[0]]
            good: list[list[CheckedRow]] = []
            for number in members:
                one = parsed(views, number + 1, rows[number])
                if isinstance(one, RowProblem):
                    problems.append((number, f"text {number + 1}: {one.detail}"))
                else:
                    good.append(one)
            for place, view in enumerate(views):
                views_of_set.append(view)
                numbers_of_set.append(members)
                checked_of_set.append([each[place] for each in good])
        if problems:
            raise DataError([text for _, text in sorted(problems)[:10]])
        return self.answer_checked(
            views_of_set, checked_of_set, numbers_of_set, len(rows), max_tokens=max_tokens
        )

    def answer_checked(
        self,
        views: Sequence[View],
        rows: Sequence[Sequence[CheckedRow]],
        numbers: Sequence[Sequence[int]],
        num_rows: int,
        *,
        max_tokens: int | None = None,
    ) -> Answered:
        """The same of rows that are checked: `rows[i]` as view i reads them are number `numbers[i]` of all."""
        answers: list[dict[str, Answer]] = [{} for _ in range(num_rows)]
        if not num_rows:
            return Answered(answers=answers, truncated=[])
        sets = [
            set_of_view(view, own, self.specs, self.layout, self.lanes, self.tokenizing)
            for view, own in zip(views, rows, strict=True)
        ]
        batches = micro_batches(
            sets, self.layout, self.lanes, self.sharing, filler_ids=self.settings.filler_ids,
            max_tokens=max_tokens or self.settings.max_tokens_per_micro_batch,
        )  # fmt: skip
        outputs = run_passes(self.net, batches, sets, self.layout, self.device)
        truncated = np.zeros(num_rows, dtype=bool)
        for index, (part, own, places) in enumerate(zip(sets, rows, numbers, strict=True)):
            truncated[np.asarray(places)] |= truncated_rows(part, self.tokenizing.max_length)
            for task in part.view.tasks:
                of_terms = [outputs[index, term] for term in self.layout.terms_of(task)]
                for place, answer in zip(
                    places, answers_of(task, self.specs[task], part, own, of_terms), strict=True
                ):
                    answers[place][self.specs[task].name] = answer
        order = {spec.name: place for place, spec in enumerate(self.specs)}
        return Answered(
            answers=[dict(sorted(each.items(), key=lambda item: order[item[0]])) for each in answers], truncated=truncated.tolist()
        )  # fmt: skip

    def views(
        self, row: Mapping[str, Any], asked: tuple[int, ...] | None, chosen: tuple[str, ...] = ()
    ) -> tuple[View, ...]:
        """The views of rows like this one for the asked tasks; None: for all that can read it. Raises ConfigError for those that cannot.

        `chosen`: text columns that the user has named. Equal rows get the same object.
        """
        key = (
            tuple(row),
            frozenset(name for name, cell in row.items() if isinstance(cell, list)),
            asked,
            chosen,
        )
        if key not in self._views:
            if len(self._views) >= _MOST_VIEWS:  # a service's rows may have any columns
                self._views.clear()
            self._views[key] = self._make_views(*key)
        return self._views[key]

    def _make_views(
        self,
        columns: tuple[str, ...],
        is_list: frozenset[str],
        asked: tuple[int, ...] | None,
        chosen: tuple[str, ...],
    ) -> tuple[View, ...]:
        wanted = range(len(self.specs)) if asked is None else asked
        readings, missing = [], []
        for task in wanted:
            reads = self.inputs[task]
            reading = None if reads is None else read_as(task, reads, columns, chosen, is_list)
            if reading is not None:
                readings.append(reading)
            else:
                missing.append(
                    f"{self.specs[task].name} ({'no answer to a text' if reads is None else 'reads ' + needs_of(reads)})"
                )
        given = ", ".join(f"'{name}'" for name in (chosen or columns))
        if missing and (asked is not None or not readings):
            raise ConfigError(
                [
                    f"task {each}: cannot read an input of {given}; name its columns, or leave the task out"
                    for each in missing
                ]
            )
        if missing:
            self._say_once(f"left out, because they cannot read an input of {given}: {', '.join(missing)}")
        views = views_of(
            readings,
            self.specs,
            lane_of=dict(enumerate(self.lanes)),
            word_prefix=self._word_prefix,
            truncates_left=self.tokenizing.specials.truncates_left,
            is_list=is_list,
        )
        copies = len({view.lane for view in views})
        if copies > 1:
            self._say_once(
                f"{self.sharing.mode} sharing: each text runs through the encoder once for each of {copies} groups of tasks"
            )
        return views

    def _say_once(self, text: str) -> None:
        if self.speaks and text not in self._said:
            self._said.add(text)
            log.warning(text)
