"""From a recipe to what a run works on: prepared data, plan, how micro-batches are cut, model.

Trains nothing. Each is one call with the recipe and one record back; train/start.py makes a run of them, and
evaluation, export and prediction use those that they need.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mtdnn_ds import dist
from mtdnn_ds.batch.groups import costs_on
from mtdnn_ds.config.encoder_path import resolve_encoder_path
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.batches.loader import LoaderSettings
from mtdnn_ds.data.cache.build import prepare
from mtdnn_ds.data.cache.leaked_rows import TRAIN, LeakedRows
from mtdnn_ds.data.cache.prepared_split import PreparedSplit
from mtdnn_ds.data.cache.tokenize import load_tokenizer, special_tokens
from mtdnn_ds.data.examples import Examples, make_examples
from mtdnn_ds.data.examples.sampled import sampled
from mtdnn_ds.data.plan.rates import Mixture
from mtdnn_ds.data.plan.step_plan import StepPlan, steps_for_epochs
from mtdnn_ds.data.plan.task_part import Plan, part_of
from mtdnn_ds.faults.heartbeat import announce
from mtdnn_ds.model.multitask import MultiTaskNet, build_model
from mtdnn_ds.runs.leaks import find_leaks, no_examples
from mtdnn_ds.runs.schedule import num_warmup_steps
from mtdnn_ds.runs.score_scales import first_scores, with_measured_scales
from mtdnn_ds.tasks.layout import HeadLayout, head_layout
from mtdnn_ds.tasks.saved_datasets import choices_made
from mtdnn_ds.tasks.sharing import Sharing, share
from mtdnn_ds.tasks.spec import TaskSpec, scored_specs

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunData:
    """A run's tasks and their prepared data, equal on every rank."""

    specs: tuple[TaskSpec, ...]
    layout: HeadLayout
    examples: dict[str, dict[str, Examples]]  # task -> split
    # Training rows that nothing was made of (data.drop_leaked_rows), of the tasks that have some
    leaks: Mapping[str, LeakedRows] = field(default_factory=dict)

    @property
    def train_sets(self) -> tuple[Examples, ...]:
        """Each task's training examples."""
        return tuple(self.examples[spec.name]["train"] for spec in self.specs)

    @property
    def train_sizes(self) -> dict[str, int]:
        """Number of each task's training examples."""
        return {spec.name: self.examples[spec.name]["train"].num_examples for spec in self.specs}

    def metric_names(self, spec: TaskSpec) -> list[str]:
        """Names of a task's metrics as evaluations report them; those of a second dev split have a suffix."""
        return [metric + split.removeprefix("dev") for split in spec.dev_splits for metric in spec.metrics]

    def describe(self, task_id: int, row: int) -> str:
        """A training example as its user would look it up."""
        spec = self.specs[task_id]
        source_row = self.examples[spec.name]["train"].source_row(row)
        return f"{spec.name} {spec.splits['train'].path} row {source_row}"


def prepare_run_data(
    recipe: Recipe,
    specs: Sequence[TaskSpec],
    *,
    splits: Collection[str] | None = None,
    leaks: Mapping[str, LeakedRows] | None = None,
) -> RunData:
    """Every train and dev split, or those named, tokenized and made into examples, the same on every rank.

    They are prepared once: on rank 0, then on nodes that do not see its disk, then opened everywhere.
    `leaks`: the training rows to be left out, instead of those that data.drop_leaked_rows finds.
    Collective: all ranks must call this. Raises ConfigError and DataError on all of them.
    """
    for line in choices_made(recipe, specs):
        log.info(line)

    if splits is None:
        splits = {name for spec in specs for name in (TRAIN, *spec.dev_splits)}
    looks_for_leaks = recipe.data.drop_leaked_rows and leaks is None and TRAIN in splits
    read = set(splits)
    if looks_for_leaks:
        read |= {name for spec in specs for name in spec.splits}

    def prepared(*, build: bool) -> dict[str, dict[str, PreparedSplit]]:
        announce("tokenizing")
        return prepare(
            specs,
            tokenizer_path=tokenizer_path(recipe),
            cache_dir=recipe.data.cache_dir,
            on_bad_row=recipe.data.on_bad_row,
            splits=read,
            build=build,
            quiet=not build,
            trust_remote_code=recipe.encoder.trust_remote_code,
        )

    def build_on_main() -> Mapping[str, LeakedRows]:
        found = prepared(build=True)
        return find_leaks(found) if looks_for_leaks else leaks or {}

    def build_on_node() -> None:
        if dist.local_rank() == 0 and not dist.is_main():
            prepared(build=True)  # finds rank 0's cache on a shared disk, else builds this node's own

    leaks = dist.on_main(build_on_main)
    dist.on_all(build_on_node)
    rows = prepared(build=False)
    examples = {
        spec.name: {
            name: _examples(recipe, spec, name, split, leaks)
            for name, split in rows[spec.name].items()
            if name in splits
        }
        for spec in specs
    }

    # Dev splits of tasks that are not trained are prepared all the same, as those of the whole mixture's run.
    specs = scored_specs(with_measured_scales(specs, examples), recipe.mixture.only_task)
    return RunData(specs=specs, layout=head_layout(specs), examples=examples, leaks=leaks)


def _examples(
    recipe: Recipe, spec: TaskSpec, name: str, split: PreparedSplit, leaks: Mapping[str, LeakedRows]
) -> Examples:
    """A split's examples, of training the sampled ones, without leaked rows.

    Raises ConfigError if one is longer than a micro-batch.
    """
    left_out = leaks[spec.name].rows if name == TRAIN and spec.name in leaks else None
    examples = make_examples(
        spec, split, max_length=recipe.encoder.max_length, seed=recipe.train.seed, left_out=left_out
    )
    if not examples.num_examples:
        raise no_examples(spec.name)

    longest, room = int(examples.lengths.argmax()), recipe.batch.max_tokens_per_micro_batch
    if examples.lengths[longest] > room:
        raise ConfigError(
            f"batch.max_tokens_per_micro_batch={room}: "
            f"the longest example of {spec.name}/{name} (row {examples.source_row(longest)}) has "
            f"{examples.lengths[longest]:,} tokens, and an example is never parted; "
            "raise it, or lower encoder.max_length"
        )

    settings = recipe.tasks[spec.name]
    if name != TRAIN or settings.train_fraction is None:
        return examples
    return sampled(examples, spec, fraction=settings.train_fraction, seed=settings.sample_seed or 0)


def total_steps(recipe: Recipe, sizes: dict[str, int]) -> int:
    """train.steps, or the steps that train.epochs takes."""
    if recipe.train.steps is not None:
        return recipe.train.steps
    assert recipe.train.epochs is not None
    return steps_for_epochs(recipe.train.epochs, sizes, recipe.batch.examples_per_step)


def build_plan(recipe: Recipe, data: RunData) -> Plan:
    """The run's plan, of one task's part if the recipe says so: equal on every rank and for every number of
    ranks.

    Raises ConfigError if it is all warm-up, or has no step.
    """
    plan = part_of(whole_plan(recipe, data), recipe.mixture.only_task)

    warmup_steps = num_warmup_steps(recipe.schedule.warmup, plan.total_steps)
    if warmup_steps >= plan.total_steps:
        raise ConfigError(
            f"schedule.warmup={recipe.schedule.warmup:g}: {warmup_steps:,} steps of warm-up, "
            f"but the run has {plan.total_steps:,}; lower it, or train longer"
        )
    return plan


def whole_plan(recipe: Recipe, data: RunData) -> StepPlan:
    """The plan of all tasks."""
    contents = "\n".join(
        f"{spec.name} {data.examples[spec.name]['train'].split.fingerprint}" for spec in data.specs
    )
    mixture = Mixture(
        rates=recipe.mixture.rates,
        temperature=recipe.mixture.temperature,
        cap=recipe.mixture.cap,
        anneal_to=recipe.mixture.anneal_to,
        mixing=recipe.mixture.mixing,
        order=recipe.mixture.order,
    )
    return StepPlan(
        sizes=data.train_sizes,
        mixture=mixture,
        examples_per_step=recipe.batch.examples_per_step,
        seed=recipe.train.seed,
        total_steps=total_steps(recipe, data.train_sizes),
        data_fingerprint=hashlib.sha256(contents.encode()).hexdigest(),
    )


def idle_tasks(plan: Plan) -> list[str]:
    """A sentence for each task that the run trains and the whole of it draws no example of."""
    drawn = plan.drawn(plan.total_steps)
    return [
        f"task '{name}' gets no example in {plan.total_steps:,} steps: its rate is too low; "
        "raise it, or remove the task from 'tasks'"
        for name, count in zip(plan.task_names, drawn, strict=True)
        if count == 0 and name in plan.trained_tasks
    ]


def loader_settings(
    recipe: Recipe, *, hidden_size: int, world_size: int, rank: int, device: torch.device
) -> LoaderSettings:
    """How the micro-batches of `rank` are cut.

    The filler sequence is the tokenizer's shortest: its special tokens alone.
    """
    template = special_tokens(_tokenizer(recipe)).single
    return LoaderSettings(
        rank=rank,
        world_size=world_size,
        max_tokens_per_micro_batch=recipe.batch.max_tokens_per_micro_batch,
        hidden_size=hidden_size,
        filler_ids=np.array(template.prefix + template.suffix, dtype=np.int64),
        sharing=recipe_sharing(recipe),
        one_task_per_micro_batch=recipe.mixture.mixing == "per_micro_batch",
        pad_tokens_to=_pad_tokens_to(recipe, device),
        group_costs=costs_on(device),
        pin_memory=device.type == "cuda",
    )


def _pad_tokens_to(recipe: Recipe, device: torch.device) -> int:
    """batch.pad_tokens_to. On CUDA by default the largest power of two that divides a full micro-batch, up to
    a 64th of it and 512; 64 where that is less.
    """
    batch = recipe.batch
    if batch.pad_tokens_to is not None:
        return batch.pad_tokens_to
    if device.type != "cuda":
        return 1

    most = max(batch.max_tokens_per_micro_batch // 64, 64)
    powers = (2**exponent for exponent in range(9, -1, -1))
    return next(power for power in powers if power <= most and batch.max_tokens_per_micro_batch % power == 0)


def tokenizer_path(recipe: Recipe) -> str:
    """The folder of the recipe's tokenizer: the encoder's, unless encoder.tokenizer names another."""
    return resolve_encoder_path(recipe.encoder.tokenizer or recipe.encoder.path)


def _tokenizer(recipe: Recipe) -> Any:
    return load_tokenizer(tokenizer_path(recipe), trust_remote_code=recipe.encoder.trust_remote_code)


def recipe_sharing(recipe: Recipe) -> Sharing:
    """How the recipe's tasks share the encoder."""
    settings = recipe.sharing
    return share(
        list(recipe.tasks),
        mode=settings.mode,
        groups=settings.groups,
        penalty=settings.penalty,
        rank=settings.rank,
    )


def run_model(
    recipe: Recipe, data: RunData, *, device: torch.device, compute_dtype: torch.dtype
) -> MultiTaskNet:
    """The recipe's model on the CPU in float32; the engine moves and casts it.

    `data.examples` may lack tasks (regressions then answer 0 at first): the weights may come from a
    checkpoint. Raises ConfigError if the encoder cannot serve the recipe.
    """
    encoder = recipe.encoder
    model = build_model(
        encoder_path=resolve_encoder_path(encoder.path, sha256=encoder.sha256),
        specs=data.specs,
        layout=data.layout,
        attention=encoder.attention,
        device_type=device.type,
        compute_dtype=compute_dtype,
        gradient_checkpointing=encoder.gradient_checkpointing,
        random_init=encoder.random_init,
        seed=recipe.train.seed,
        trust_remote_code=encoder.trust_remote_code,
        dropout=recipe.train.dropout,
        fused_layer_norm=encoder.fused_layer_norm,
        sharing=recipe_sharing(recipe),
        first_score=first_scores(data.specs, data.examples),
    )

    most = model.encoder.max_positions
    if encoder.max_length > most:
        raise ConfigError(
            f"encoder.max_length={encoder.max_length}: {encoder.path} has {most} positions; "
            f"set it to at most {most}"
        )

    num_tokens, num_known = len(_tokenizer(recipe)), model.encoder.config.vocab_size
    if num_tokens > num_known:
        raise ConfigError(
            f"encoder.tokenizer={tokenizer_path(recipe)}: has {num_tokens:,} tokens, "
            f"and the encoder {encoder.path} knows {num_known:,}; use the encoder's own"
        )
    return model


def settings_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON values."""
    return recipe.model_dump(mode="json")
