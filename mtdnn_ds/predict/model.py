"""MultiTaskModel: a trained model in Python, `from_pretrained(path)` and `predict(texts)`. Trains nothing.

Every text runs through the encoder once for all tasks that read it the same way; with soft sharing once for
each copy of the encoder.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mtdnn_ds.config.encoder_path import resolve_encoder_path
from mtdnn_ds.config.errors import ConfigError, DataError
from mtdnn_ds.config.precision import Dtype
from mtdnn_ds.data.cache.tokenize import load_tokenizer, special_tokens, word_prefix
from mtdnn_ds.data.rows.checked import CheckedRow
from mtdnn_ds.data.sources.lines import RowProblem
from mtdnn_ds.predict.answers import Answer, answers_of
from mtdnn_ds.predict.embedding import Pooling, embed
from mtdnn_ds.predict.inputs import asked_tasks, needs_of, read_as, rows_of, task_input
from mtdnn_ds.predict.passes import lanes_of, micro_batches, run_passes
from mtdnn_ds.predict.sets import Tokenizing, set_of_view, truncated_rows
from mtdnn_ds.predict.views import View, parsed, views_of
from mtdnn_ds.runs.load import LoadedRun
from mtdnn_ds.runs.model_folder import default_checkpoint, open_model
from mtdnn_ds.runs.number_format import answering_dtype

log = logging.getLogger("mtdnn_ds")

Tasks = Sequence[str] | str
_MOST_VIEWS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class RowAnswers:
    """Answers of some rows, and which rows lost tokens to encoder.max_length."""

    answers: list[dict[str, Answer]]
    truncated: list[bool]


class MultiTaskModel:
    """One encoder and the heads of its tasks, in evaluation mode.

    Not safe for calls from several threads at once.
    """

    def __init__(self, loaded: LoadedRun) -> None:
        self.loaded = loaded
        self.recipe, self.specs, self.layout = loaded.recipe, loaded.specs, loaded.layout
        self.net = loaded.model.eval()
        self.settings, self.device, self.sharing = loaded.settings, loaded.device, loaded.settings.sharing

        encoder = self.recipe.encoder
        path = resolve_encoder_path(encoder.tokenizer or encoder.path)
        tokenizer = load_tokenizer(path, trust_remote_code=encoder.trust_remote_code)
        self.tokenizing = Tokenizing(
            tokenizer=tokenizer, specials=special_tokens(tokenizer), max_length=encoder.max_length
        )
        self.lanes = lanes_of(len(self.specs), self.sharing)
        self.inputs = tuple(task_input(spec, self.recipe) for spec in self.specs)
        self._word_prefix = ""
        if any(reads and reads.kind == "words" for reads in self.inputs):
            self._word_prefix = word_prefix(tokenizer)

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
        dtype: Dtype = "auto",
        trust_plugins: bool = False,
    ) -> MultiTaskModel:
        """The model in a run folder, or in an exported folder of the whole model.

        `checkpoint`: best/average, best/TASK, step_N or latest; None: the best on average, or the latest of a
        run without evaluations. `device` None: a GPU if there is one. `dtype`: the number format that it
        computes in; "auto": bf16 on a GPU with bf16 arithmetic, else fp32. `trust_plugins`: an exported
        folder may run its own Python files (kinds of the user's own). Raises ConfigError and CheckpointError.
        """
        path = str(path)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(device)

        loaded = open_model(
            path,
            checkpoint or default_checkpoint(path),
            device=device,
            dtype=answering_dtype(dtype, device),
            trust_plugins=trust_plugins,
        )
        return cls(loaded)

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

        `texts`: str, (str, str) pairs, or dicts with a task's columns. `tasks`: names, or "all" that read
        such texts. `max_tokens`: of a micro-batch, the training run's if None. Raises ConfigError for unknown
        tasks and DataError for texts that cannot be used.
        """
        rows = rows_of(texts)
        asked = asked_tasks(tasks, self.specs, "tasks")
        return self.answer(rows, [asked] * len(rows), max_tokens=max_tokens).answers

    def embed(
        self, texts: Sequence[Any], pooling: Pooling = "cls", *, layer: int = -1, task: str | None = None
    ) -> np.ndarray:
        """(texts, hidden size) float32: the first token's hidden state, or the mean, special ones included.

        `layer`: as transformers counts hidden_states, -1 the last. `task`: with soft or low-rank sharing,
        whose encoder it is.
        """
        return embed(self.loaded, self.tokenizing, texts, pooling, layer=layer, task=task)

    def answer(
        self,
        rows: Sequence[Mapping[str, Any]],
        asked: Sequence[tuple[int, ...] | None],
        *,
        max_tokens: int | None = None,
    ) -> RowAnswers:
        """The answers to rows, each asked for its own tasks (None: all that fit it), in one pass over all."""
        views_of_row = [self.views(row, tasks) for row, tasks in zip(rows, asked, strict=True)]
        groups: dict[int, list[int]] = {}
        for number, views in enumerate(views_of_row):
            groups.setdefault(id(views), []).append(number)

        # One set for each view of each group of rows that have the same views.
        views_of_set: list[View] = []
        checked_of_set: list[list[CheckedRow]] = []
        numbers_of_set: list[list[int]] = []
        problems: list[tuple[int, str]] = []
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
                checked_of_set.append([each[place] for each in good])
                numbers_of_set.append(members)
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
    ) -> RowAnswers:
        """The same of checked rows: `rows[i]` as view i reads them are number `numbers[i]` of all."""
        if not num_rows:
            return RowAnswers(answers=[], truncated=[])

        sets = [
            set_of_view(view, own, self.specs, self.layout, self.lanes, self.tokenizing)
            for view, own in zip(views, rows, strict=True)
        ]
        batches = micro_batches(
            sets,
            self.layout,
            self.lanes,
            self.sharing,
            filler_ids=self.settings.filler_ids,
            max_tokens=max_tokens or self.settings.max_tokens_per_micro_batch,
            group_costs=self.settings.group_costs,
        )
        outputs = run_passes(self.net, batches, sets, self.layout, self.device)

        truncated = np.zeros(num_rows, dtype=bool)
        answer_of: dict[tuple[int, int], Answer] = {}  # (row, task) -> answer
        for index, (part, own, places) in enumerate(zip(sets, rows, numbers, strict=True)):
            truncated[np.asarray(places)] |= truncated_rows(part, self.tokenizing.max_length)
            for task in part.view.tasks:
                of_terms = [outputs[index, term] for term in self.layout.terms_of(task)]
                answers = answers_of(task, self.specs[task], part, own, of_terms)
                answer_of |= {(place, task): answer for place, answer in zip(places, answers, strict=True)}

        in_order: list[dict[str, Answer]] = [{} for _ in range(num_rows)]
        for (place, task), answer in sorted(answer_of.items(), key=lambda item: item[0]):
            in_order[place][self.specs[task].name] = answer
        return RowAnswers(answers=in_order, truncated=truncated.tolist())

    def views(
        self, row: Mapping[str, Any], asked: tuple[int, ...] | None, chosen: tuple[str, ...] = ()
    ) -> tuple[View, ...]:
        """The views of rows like this one for the asked tasks; None: for all that can read it.

        `chosen`: text columns that the user has named. Equal rows get the same object. Raises ConfigError if
        an asked task cannot read such rows.
        """
        is_list = frozenset(name for name, cell in row.items() if isinstance(cell, list))
        key = (tuple(row), is_list, asked, chosen)
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
        readings, missing = [], []
        for task in range(len(self.specs)) if asked is None else asked:
            reads = self.inputs[task]
            if reads is None:
                missing.append(f"{self.specs[task].name} (no answer to a text)")
                continue

            reading = read_as(task, reads, columns, chosen, is_list)
            if reading is None:
                missing.append(f"{self.specs[task].name} (reads {needs_of(reads)})")
            else:
                readings.append(reading)

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
                f"{self.sharing.mode} sharing: each text runs through the encoder once for each of {copies} "
                "groups of tasks"
            )
        return views

    def _say_once(self, text: str) -> None:
        if self.speaks and text not in self._said:
            self._said.add(text)
            log.warning(text)
