"""Sample rows of every task, and our outputs for them. Not the comparison (parity.py).

Rows come from the dev splits in the run's cache. Where those are not there, a few built-in sentences stand
in.

Shape legend: S sequences, T their tokens, K supervised rows, C outputs of a term.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.config.encoder_path import resolve_encoder_path
from mtdnn_ds.config.errors import UserError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.batches.collate import ExampleSets, collate
from mtdnn_ds.data.cache.build import prepare
from mtdnn_ds.data.cache.prepared_split import PreparedSplit
from mtdnn_ds.data.cache.tokenize import SpecialTokens, encodings
from mtdnn_ds.data.examples import Examples, Gathered, make_examples
from mtdnn_ds.data.examples.base import TargetRows
from mtdnn_ds.monitor.console import silenced
from mtdnn_ds.runs.load import LoadedRun
from mtdnn_ds.tasks.layout import HeadLayout
from mtdnn_ds.tasks.spec import TaskSpec

EXAMPLES = 32
MOST_TOKENS = 4096  # of a task's sample
MOST_MASKED_TOKENS = 512  # of one whose plain model scores the vocabulary for every token
BUILT_IN = "built-in sentences"

_SENTENCES = (
    ("The film was a long, slow delight.", "Nobody left the cinema early."),
    ("How far is the moon from the earth?", "The moon is about 384,400 kilometres away from the earth."),
    ("Anna Meier moved from Zurich to Lisbon in 2019.", "She lives in Portugal."),
    (
        "It rained.",
        "The match was called off because the pitch at Elland Road was under water, "
        "and the next date is open.",
    ),
    ("They book the table, and we pays the bill.", "We pay."),
    ("A man is playing a guitar on a wooden stage.", "Someone is making music."),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Some examples of one task."""

    gathered: Gathered
    source: str  # "dev rows" or BUILT_IN
    outputs: tuple[np.ndarray, ...] = ()  # (K, C) of each term, for the rows of its `gathered.targets`

    @property
    def num_sequences(self) -> int:
        """Sequences of all examples."""
        return len(self.gathered.lengths)

    def sequences(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids and token types of each sequence."""
        cuts = np.cumsum(self.gathered.lengths)[:-1]
        ids, types = self.gathered.input_ids, self.gathered.token_type_ids
        return list(zip(np.split(ids, cuts), np.split(types, cuts), strict=True))


def prepared_splits(recipe: Recipe, specs: Sequence[TaskSpec]) -> dict[str, dict[str, PreparedSplit]]:
    """{task: {split: rows}} of the train and dev splits that are in the run's cache.

    Dev splits are built from local files if need be.
    """
    found: dict[str, dict[str, PreparedSplit]] = {}
    for spec in specs:
        for split in ("train", *spec.dev_splits):
            if split not in spec.splits:
                continue

            try:
                with silenced():
                    prepared = prepare(
                        [spec],
                        tokenizer_path=resolve_encoder_path(recipe.encoder.tokenizer or recipe.encoder.path),
                        cache_dir=recipe.data.cache_dir,
                        on_bad_row=recipe.data.on_bad_row,
                        splits=[split],
                        build=split != "train" and spec.splits[split].format != "hub",
                        trust_remote_code=recipe.encoder.trust_remote_code,
                    )
            except (UserError, RuntimeError):  # its files or its cache are gone
                continue
            found.setdefault(spec.name, {}).update(prepared[spec.name])
    return found


def take_samples(
    recipe: Recipe,
    specs: Sequence[TaskSpec],
    layout: HeadLayout,
    prepared: Mapping[str, Mapping[str, PreparedSplit]],
    tokenizer: object,
    specials: SpecialTokens,
) -> dict[str, Sample]:
    """{task: its sample, without outputs}.

    Deterministic: examples at equal distances over the dev split (masked_lm: the train split).
    """
    max_length, seed = recipe.encoder.max_length, recipe.train.seed
    samples = {}
    for task_id, spec in enumerate(specs):
        splits = prepared.get(spec.name, {})
        own = next((name for name in (*spec.dev_splits, "train") if name in splits), None)
        if own is None:
            gathered = _built_in(spec, layout, task_id, max_length, tokenizer, specials)
            samples[spec.name] = Sample(gathered=gathered, source=BUILT_IN)
            continue

        examples = make_examples(spec, splits[own], max_length=max_length, seed=seed)
        most = MOST_MASKED_TOKENS if spec.kind == "masked_lm" else MOST_TOKENS
        samples[spec.name] = Sample(gathered=_some(examples, most), source=f"{own} rows")
    return samples


def _some(examples: Examples, most_tokens: int) -> Gathered:
    """Examples at equal distances, of `most_tokens` tokens together, or one."""
    chosen = np.unique(np.linspace(0, examples.num_examples - 1, EXAMPLES).astype(np.int64))
    fits = np.cumsum(examples.lengths[chosen]) <= most_tokens
    fits[0] = True
    chosen = chosen[fits]
    return examples.gather(chosen, np.zeros_like(chosen))


def with_outputs(sample: Sample, loaded: LoadedRun, task_id: int) -> Sample:
    """The sample with our packed model's outputs for it, which is to be in evaluation mode."""
    gathered, layout = sample.gathered, loaded.layout
    # A label is its row's number: targets come back in the order of the packed sequences.
    numbered = [replace(own, labels=np.arange(len(own.rows), dtype=np.float32)) for own in gathered.targets]
    batch = _packed(replace(gathered, targets=numbered), loaded, task_id)
    with torch.no_grad():
        forms = loaded.model(batch.to(loaded.device))

    outputs = []
    for term_id in layout.terms_of(task_id):
        term = layout.terms[term_id]
        targets = batch.targets[term.form]
        own = torch.nonzero(targets.term_ids == term_id)[:, 0]
        order = own[targets.labels[own].argsort()]
        columns = slice(term.columns.start, term.columns.stop) if term.num_outputs else slice(None)
        outputs.append(forms[term.form].cpu()[order][:, columns].numpy())
    return replace(sample, outputs=tuple(outputs))


def hidden_outputs(sample: Sample, loaded: LoadedRun, task_id: int) -> list[np.ndarray]:
    """Our hidden states (tokens, D) of each sequence of the task's sample."""
    batch = _packed(sample.gathered, loaded, task_id)
    with torch.no_grad():
        hidden_TD = loaded.model.encoder(batch.to(loaded.device)).cpu()

    sequences = hidden_TD.split(batch.cu_seqlens.diff().tolist())
    own = [
        states.numpy()
        for states, owner in zip(sequences, batch.sequence_examples, strict=True)
        if owner >= 0  # no filler
    ]
    # Collate lays sequences out shortest first, ties in their own order.
    gathered = sample.gathered
    order = np.lexsort((np.arange(sample.num_sequences), gathered.examples, gathered.lengths))
    return [own[place] for place in np.argsort(order)]


def _packed(gathered: Gathered, loaded: LoadedRun, task_id: int) -> PackedBatch:
    """The sample's examples as one micro-batch of the task."""
    num_examples = int(gathered.examples.max()) + 1
    return collate(
        np.zeros(num_examples, dtype=np.int32),
        np.arange(num_examples),
        np.zeros(num_examples, dtype=np.int64),
        ExampleSets(
            examples=[_WholeSample(gathered)],  # type: ignore[list-item]
            tasks=[task_id],
            layout=loaded.layout,
            filler_ids=loaded.settings.filler_ids,
            sharing=loaded.settings.sharing,
        ),
    )


class _WholeSample:
    """What collate reads of a split: the sample, whole."""

    def __init__(self, gathered: Gathered) -> None:
        self.gathered = gathered

    def gather(self, examples_B: np.ndarray, epochs_B: np.ndarray) -> Gathered:
        return self.gathered


def _built_in(
    spec: TaskSpec,
    layout: HeadLayout,
    task_id: int,
    max_length: int,
    tokenizer: object,
    specials: SpecialTokens,
) -> Gathered:
    """Pairs of the built-in sentences; choices are two to an example.

    Every row that a term could read is read.
    """
    template = specials.pair
    room = (max_length - template.num_special) // 2
    ids, types, lengths, segments = [], [], [], []
    for pair in _SENTENCES:
        first, second = ([*encoding.ids][:room] for encoding in encodings(tokenizer, pair))
        ids += [*template.prefix, *first, *template.middle, *second, *template.suffix]
        types += [*template.prefix_types, *([template.first_type] * len(first)), *template.middle_types]
        types += [*([template.second_type] * len(second)), *template.suffix_types]
        lengths.append(template.num_special + len(first) + len(second))

        begin = len(template.prefix)
        segments.append((begin, len(first), begin + len(first) + len(template.middle), len(second)))

    lengths_S = np.array(lengths)
    per_example = 2 if spec.kind in ("multiple_choice", "ranking", "similarity") else 1
    examples_S = np.arange(len(lengths_S)) // per_example
    targets = []
    for term_id in layout.terms_of(task_id):
        term = layout.terms[term_id]
        rows, examples = np.arange(len(lengths_S)), examples_S
        if term.reads == "token":
            rows, examples = np.arange(int(lengths_S.sum())), np.repeat(examples_S, lengths_S)
        extra = {}
        if term.head == "san":
            extra["segments"] = np.array(segments)
        labels = np.zeros(len(rows), dtype=np.float32)
        targets.append(TargetRows(rows=rows, labels=labels, examples=examples, extra=extra))
    return Gathered(
        input_ids=np.array(ids),
        token_type_ids=np.array(types),
        lengths=lengths_S,
        examples=examples_S,
        targets=targets,
    )
