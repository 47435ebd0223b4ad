"""Examples -> PackedBatch: gathers their sequences and lays them end to end, shortest first. Chooses nothing.

Worked example: sequences of lengths 5, 3, 4 are laid out as lengths 3, 4, 5 with cu_seqlens [0, 3, 7, 12] and
position_ids 0 1 2 | 0 1 2 3 | 0 1 2 3 4; a target that pointed to token 6 (the second of length 3's) then
points to token 1.

Shape legend: B examples, S sequences, T tokens, K supervised rows, M terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from mtdnn_ds.batch import AttentionGroup, PackedBatch, Targets
from mtdnn_ds.batch.groups import CPU_COSTS, GroupCosts, attention_groups
from mtdnn_ds.counter_hash import sequence_keys, stream_of
from mtdnn_ds.data.batches.fillers import filler_lengths
from mtdnn_ds.data.batches.sharing_parts import parts_of_copies
from mtdnn_ds.data.examples import Examples, Gathered, TargetRows
from mtdnn_ds.data.ragged import ragged_index
from mtdnn_ds.tasks.layout import HeadLayout
from mtdnn_ds.tasks.sharing import HARD, Sharing


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleSets:
    """What micro-batches are made of: sets of examples, their tasks, and how these share the encoder."""

    examples: Sequence[Examples]
    tasks: Sequence[int]  # the task of each set; evaluation has several sets of one task
    layout: HeadLayout
    filler_ids: np.ndarray  # a shortest valid sequence, for an encoder without examples
    sharing: Sharing = HARD
    pad_tokens_to: int = 1  # fillers make an encoder's tokens a multiple of this
    group_costs: GroupCosts = CPU_COSTS


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """The sequences of one set in a micro-batch, or the fillers of one copy of the encoder."""

    set_index: int  # -1 for a filler
    copy: int
    members: np.ndarray  # which of B are its examples
    gathered: Gathered

    @property
    def owners(self) -> np.ndarray:
        """Index into B of each of its sequences; -1 for a filler."""
        if self.set_index < 0:
            return np.full(len(self.gathered.lengths), -1)
        return self.members[self.gathered.examples]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Order:
    """Where the sequences and the tokens of all parts, end to end, go in the micro-batch."""

    sequences: np.ndarray  # (S,) the sequence at each new place
    tokens: np.ndarray  # (T,) the token at each new place

    def places(self, reads: str) -> np.ndarray:
        """The new place of each sequence or token, as a head reads."""
        old = self.sequences if reads == "sequence" else self.tokens
        new = np.empty_like(old)
        new[old] = np.arange(len(old))
        return new


def collate(
    index_B: np.ndarray, examples_B: np.ndarray, epochs_B: np.ndarray, sets: ExampleSets, *, step: int = 0
) -> PackedBatch:
    """One micro-batch of the given examples: number `examples_B[b]` of set `index_B[b]`. Deterministic.

    `epochs_B` says how often each has been drawn before, `step` which step of the training it is. An encoder
    without examples (each copy, with soft sharing) gets one filler sequence that no target refers to, and
    each as many as `sets.pad_tokens_to` asks for.
    """
    sharing = sets.sharing
    parts = _gather(index_B, examples_B, epochs_B, sets)
    num_sequences = [len(part.gathered.lengths) for part in parts]
    lengths_S = np.concatenate([part.gathered.lengths for part in parts]).astype(np.int64)
    owner_S = np.concatenate([part.owners for part in parts])
    copy_S = np.repeat([part.copy for part in parts], num_sequences)
    set_S = np.repeat([part.set_index for part in parts], num_sequences)

    # Shortest first, so that sequences of similar length are neighbours; ties keep the step's own order.
    by_length = np.lexsort((np.arange(len(lengths_S)), owner_S, lengths_S, copy_S))
    order = _Order(sequences=by_length, tokens=ragged_index(lengths_S, by_length))
    new_lengths_S, new_owner_S = lengths_S[by_length], owner_S[by_length]
    cu_seqlens = np.concatenate(([0], np.cumsum(new_lengths_S)))

    targets, unit_counts = _targets(parts, order, sets)
    attention: tuple[AttentionGroup, ...] = ()
    packed_to_padded = _int64(())
    if sharing.mode != "soft":
        attention, packed_to_padded = attention_groups(new_lengths_S, sets.group_costs)
    sequence_groups = None
    if sharing.mode == "low_rank":
        sequence_groups = _groups_of_tasks(set_S[by_length], sets)

    streams_N = np.array([stream_of(sets.layout.task_names[task]) for task in sets.tasks], dtype=np.uint64)
    keys = sequence_keys(new_owner_S, streams_N[index_B], examples_B, epochs_B)

    input_ids = np.concatenate([part.gathered.input_ids for part in parts])
    token_type_ids = np.concatenate([part.gathered.token_type_ids for part in parts])
    batch = PackedBatch(
        input_ids=_int64(input_ids[order.tokens]),
        token_type_ids=_int64(token_type_ids[order.tokens]),
        position_ids=_int64(np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], new_lengths_S)),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        max_seqlen=int(new_lengths_S.max()),
        attention_groups=attention,
        packed_to_padded=packed_to_padded,
        targets=targets,
        unit_counts=unit_counts,
        example_tasks=index_B.astype(np.int64),
        example_rows=examples_B.astype(np.int64),
        sequence_examples=new_owner_S,
        num_tokens=int(lengths_S[owner_S >= 0].sum()),
        sequence_groups=sequence_groups,
        sequence_keys=torch.from_numpy(keys.view(np.int64)),
        step=step,
    )

    if sharing.mode != "soft":
        return batch
    return replace(batch, parts=parts_of_copies(batch, copy_S[by_length], sets.group_costs))


def _gather(
    index_B: np.ndarray, examples_B: np.ndarray, epochs_B: np.ndarray, sets: ExampleSets
) -> list[_Part]:
    """The sequences of each set that has any, then the fillers."""
    parts = []
    for index in np.unique(index_B).tolist():
        members = np.flatnonzero(index_B == index)
        gathered = sets.examples[index].gather(examples_B[members], epochs_B[members])
        copy = sets.sharing.copy_of(sets.tasks[index])
        parts.append(_Part(set_index=index, copy=copy, members=members, gathered=gathered))

    longest = max((int(part.gathered.lengths.max()) for part in parts), default=len(sets.filler_ids))
    nobody = np.zeros(0, dtype=np.int64)
    for copy in range(sets.sharing.num_copies):
        tokens = sum(len(part.gathered.input_ids) for part in parts if part.copy == copy)
        lengths = filler_lengths(
            tokens,
            longest=longest,
            filler_size=len(sets.filler_ids),
            pad_tokens_to=sets.pad_tokens_to,
        )
        if lengths:
            filler = _filler(lengths, sets.filler_ids)
            parts.append(_Part(set_index=-1, copy=copy, members=nobody, gathered=filler))
    return parts


def _filler(lengths: Sequence[int], filler_ids: np.ndarray) -> Gathered:
    """Sequences of these lengths that belong to no example, of the shortest valid one over and over."""
    input_ids = np.resize(filler_ids, sum(lengths))
    return Gathered(
        input_ids=input_ids,
        token_type_ids=np.zeros_like(input_ids),
        lengths=np.array(lengths),
        examples=np.full(len(lengths), -1),
        targets=[],
    )


def _groups_of_tasks(set_S: np.ndarray, sets: ExampleSets) -> torch.Tensor:
    """Group of tasks of each sequence; a filler's is the first."""
    group_of_set = [sets.sharing.group_of_task[task] for task in sets.tasks]
    return _int64([group_of_set[index] if index >= 0 else 0 for index in set_S.tolist()])


# Targets


@dataclass(slots=True)
class _FormTargets:
    """Targets of one form's terms, as they come: an entry of each list for a term of a part."""

    rows: list[np.ndarray] = field(default_factory=list)  # places in the micro-batch
    term_ids: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    examples: list[np.ndarray] = field(default_factory=list)  # index into B
    extras: list[dict[str, np.ndarray]] = field(default_factory=list)

    def add(self, term_id: int, rows: np.ndarray, examples: np.ndarray, targets: TargetRows) -> None:
        self.rows.append(rows)
        self.term_ids.append(np.full(len(rows), term_id))
        self.labels.append(targets.labels)
        self.examples.append(examples)
        self.extras.append(dict(targets.extra))


def _targets(
    parts: Sequence[_Part], order: _Order, sets: ExampleSets
) -> tuple[dict[str, Targets], np.ndarray]:
    """Targets of every form, and the units of each term (M,).

    Rows point into the reordered sequences and tokens.
    """
    layout = sets.layout
    places = {reads: order.places(reads) for reads in ("sequence", "token")}
    forms = {form: _FormTargets() for form in layout.forms}
    unit_counts = np.zeros(len(layout.terms))
    before = {"sequence": 0, "token": 0}  # of the part's own

    for part in parts:
        if part.set_index >= 0:
            term_ids = layout.terms_of(sets.tasks[part.set_index])
            for term_id, own in zip(term_ids, part.gathered.targets, strict=True):
                term = layout.terms[term_id]
                rows = places[term.reads][own.rows + before[term.reads]]
                examples = part.members[own.examples]
                forms[term.form].add(term_id, rows, examples, own)
                unit_counts[term_id] += len(np.unique(examples)) if term.unit == "example" else len(rows)
        before["sequence"] += len(part.gathered.lengths)
        before["token"] += len(part.gathered.input_ids)
    return {form: _joined(targets) for form, targets in forms.items()}, unit_counts


def _joined(parts: _FormTargets) -> Targets:
    """One form's targets of all terms, in the order of the tasks."""
    nothing = np.zeros(0, dtype=np.int64)
    rows, term_ids, labels, examples = (
        np.concatenate([nothing, *column])
        for column in (parts.rows, parts.term_ids, parts.labels, parts.examples)
    )

    # A group is a run of rows of one term and one example.
    starts = np.flatnonzero((np.diff(term_ids, prepend=-1) != 0) | (np.diff(examples, prepend=-1) != 0))
    groups = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(rows))))

    num_rows = [len(each) for each in parts.rows]
    extra = {}
    for name in sorted({name for each in parts.extras for name in each}):
        columns = [each.get(name) for each in parts.extras]
        extra[name] = torch.from_numpy(_joined_extra(columns, num_rows))
    return Targets(
        rows=_int64(rows),
        term_ids=_int64(term_ids),
        labels=torch.from_numpy(labels.astype(np.float32)),
        groups=_int64(groups),
        examples=examples[starts].astype(np.int64),
        extra=extra,
    )


def _joined_extra(columns: Sequence[np.ndarray | None], num_rows: Sequence[int]) -> np.ndarray:
    """One further column of all terms.

    What some lack (soft targets of a task without a teacher, of fewer classes) is NaN.
    """
    given = [column for column in columns if column is not None]
    shape = np.max([column.shape[1:] for column in given], axis=0).astype(int).tolist()
    if len(given) == len(columns) and all(list(column.shape[1:]) == shape for column in given):
        return np.concatenate(given)

    joined = np.full((sum(num_rows), *shape), np.nan, dtype=given[0].dtype)
    for column, end in zip(columns, np.cumsum(num_rows), strict=True):
        if column is not None:
            place = (slice(end - len(column), end), *(slice(0, size) for size in column.shape[1:]))
            joined[place] = column
    return joined


def _int64(values: np.ndarray | Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
