"""`plan`: what a run would do, from its recipe and prepared data alone. Trains nothing and loads no weights."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mtdnn_ds.config.deepspeed import ResolvedDeepSpeed
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.train.preflight.checks import CheckedRun, checked_stages

if TYPE_CHECKING:
    from rich.console import Console

    from mtdnn_ds.data.plan.step_plan import StepPlan
    from mtdnn_ds.runs.setup import RunData

SAMPLED_STEPS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Averages and extremes over steps spread evenly over the run."""

    num_steps: int
    tokens: float  # per step, all ranks
    micro_batches: float  # per step and rank
    packing_efficiency: float  # tokens / what the micro-batches could hold
    padding_efficiency: float  # tokens / tokens that token-wise layers see
    imbalance_mean: float
    imbalance_most: float
    most_tokens: int  # in one micro-batch


def run(
    *, recipe: str, deepspeed_config: str, world_size: int, skip_findings: bool, overrides: Mapping[str, str]
) -> int:
    """Print the plan of `recipe`, or of each of its stages, for `world_size` ranks; returns the exit code."""
    from mtdnn_ds.monitor.console import configure_logging

    configure_logging("warning", rank=0)
    stages = checked_stages(recipe, deepspeed_config, overrides, world_size=world_size)
    from rich.console import Console

    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 140)
    for stage, checked in stages:
        begins = f", begins with {stage.source} ({checked.recipe.init.checkpoint})" if stage.source else ""
        _show(
            console,
            f"{recipe}, stage {stage.name}{begins}" if stage.name else recipe,
            checked,
            world_size,
            find=not skip_findings,
        )
    return 0


def _show(console: Console, title: str, checked: CheckedRun, world_size: int, *, find: bool) -> None:
    from rich.table import Table

    from mtdnn_ds.runs.setup import build_plan, idle_tasks, prepare_run_data

    for note in checked.deepspeed.notes:
        console.print(note, markup=False, highlight=False)
    settings = checked.recipe
    data = prepare_run_data(
        settings, checked.specs, lambda text: console.print(text, markup=False, highlight=False)
    )
    plan = build_plan(settings, data)
    shape = encoder_shape(settings)
    sample = sample_steps(settings, data, plan, world_size=world_size, hidden_size=shape.hidden_size)

    table = Table(
        title=f"{title}: {plan.total_steps:,} steps of {plan.examples_per_step:,} examples, mixing {plan.mixing}"
    )
    for column in ("task", "rows", "rate", "examples", "epochs", "first step", "last step"):
        table.add_column(column, justify="left" if column == "task" else "right")
    drawn, first, last = plan.drawn(plan.total_steps), plan.task_counts(1), plan.task_counts(plan.total_steps)
    for index, name in enumerate(plan.task_names):
        cells = (
            f"{data.train_sizes[name]:,}",
            f"{drawn[index] / drawn.sum():.4f}",
            f"{drawn[index]:,}",
            f"{plan.epochs(plan.total_steps)[index]:.2f}",
        )
        table.add_row(name, *cells, f"{first[index]:,}", f"{last[index]:,}")
    console.print(table)
    for line in (
        *_step_lines(settings, sample, world_size),
        *_memory_lines(settings, checked.deepspeed, shape, sample, world_size),
    ):
        console.print(line, markup=False, highlight=False)
    for line in idle_tasks(plan):
        console.print(line, markup=False, highlight=False)
    console.print(f"plan fingerprint {plan.fingerprint[:16]}", markup=False, highlight=False)
    if not find:
        return
    from mtdnn_ds.check.mixture import mixture_findings

    findings = mixture_findings(data, plan)
    console.print(
        f"{len(findings) or 'no'} findings in the data{':' if findings else ''}",
        markup=False,
        highlight=False,
    )
    for line in findings:
        console.print(f"  {line}", markup=False, highlight=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderShape:
    """What the size of an encoder follows from."""

    num_parameters: int  # of all copies, and with low-rank changes
    num_layers: int
    hidden_size: int
    intermediate_size: int


def encoder_shape(recipe: Recipe) -> EncoderShape:
    """Sizes of the recipe's encoder from its config alone: its weights are neither read nor allocated."""
    import torch
    from transformers import AutoConfig, AutoModel

    from mtdnn_ds.config.encoder_path import resolve_encoder_path
    from mtdnn_ds.model.sharing import num_parameters
    from mtdnn_ds.runs.setup import recipe_sharing

    config = AutoConfig.from_pretrained(
        resolve_encoder_path(recipe.encoder.path), trust_remote_code=recipe.encoder.trust_remote_code
    )
    with torch.device("meta"):
        model = AutoModel.from_config(config, trust_remote_code=recipe.encoder.trust_remote_code)
    return EncoderShape(
        num_parameters=num_parameters(model, recipe_sharing(recipe)),
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=getattr(config, "intermediate_size", 4 * config.hidden_size),
    )


def sample_steps(
    recipe: Recipe, data: RunData, plan: StepPlan, *, world_size: int, hidden_size: int
) -> Sample:
    """Pack up to SAMPLED_STEPS steps as a run on `world_size` ranks would."""
    import torch

    from mtdnn_ds.data.batches.loader import example_lengths, pack_examples
    from mtdnn_ds.data.batches.sharing_parts import num_fillers
    from mtdnn_ds.runs.setup import loader_settings

    settings = loader_settings(
        recipe, hidden_size=hidden_size, rank=0, world_size=world_size, device=torch.device("cpu")
    )
    lengths = [examples.lengths for examples in data.train_sets]
    steps = np.unique(np.linspace(1, plan.total_steps, min(SAMPLED_STEPS, plan.total_steps)).astype(int))
    rows = []
    most_tokens = 0
    for step in steps:
        examples = plan.step(int(step))
        lengths_B = example_lengths(examples.task_ids, examples.rows, lengths)
        packing = pack_examples(lengths_B, examples.task_ids, settings)
        bins = [members for rank in packing.micro_batches for members in rank]
        fillers = num_fillers(packing, examples.task_ids, settings.sharing) * len(settings.filler_ids)
        most_tokens = max(most_tokens, *(int(lengths_B[members].sum()) for members in bins))
        rows.append(
            (
                packing.tokens,
                packing.num_micro_batches,
                packing.packing_efficiency,
                packing.tokens / (packing.tokens + fillers),
                packing.rank_imbalance,
            )
        )
    means = np.mean(rows, axis=0)
    return Sample(
        num_steps=len(steps),
        tokens=float(means[0]),
        micro_batches=float(means[1]),
        packing_efficiency=float(means[2]),
        padding_efficiency=float(means[3]),
        imbalance_mean=float(means[4]),
        imbalance_most=float(np.max(rows, axis=0)[4]),
        most_tokens=most_tokens,
    )


def _step_lines(recipe: Recipe, sample: Sample, world_size: int) -> list[str]:
    ranks = f"{world_size:,} rank{'s' if world_size > 1 else ''}"
    return [
        f"over {sample.num_steps} steps spread over the run, on {ranks}:",
        f"  tokens a step          {sample.tokens:,.0f}",
        f"  micro-batches a rank   {sample.micro_batches:.2f}, of at most {recipe.batch.max_tokens_per_micro_batch:,} tokens, filled to {sample.packing_efficiency:.1%}",
        f"  padding efficiency     {sample.padding_efficiency:.4f} (1 = token-wise layers see real tokens only)",
        f"  rank imbalance         {sample.imbalance_mean:.4f} on average, {sample.imbalance_most:.4f} at most",
    ]


def _memory_lines(
    recipe: Recipe, deepspeed: ResolvedDeepSpeed, shape: EncoderShape, sample: Sample, world_size: int
) -> list[str]:
    from mtdnn_ds.monitor.flops import activation_bytes, model_state_bytes

    precision = deepspeed.precision
    activations = activation_bytes(
        num_tokens=sample.most_tokens,
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        bytes_per_value=4 if precision == "fp32" else 2,
        gradient_checkpointing=recipe.encoder.gradient_checkpointing,
    )
    activations *= (
        2 if recipe.regularizer.name in ("smart", "r_drop") else 1
    )  # two passes go backward together
    averaged = 4 * shape.num_parameters if recipe.regularizer.proximal_factor else 0
    lines = [
        f"memory a rank, estimated ({shape.num_parameters / 1e6:,.1f} M parameters, {precision}; activations {activations / 1e9:.2f} GB at {sample.most_tokens:,} tokens):"
    ]
    for stage in (0, 1, 2, 3):
        chosen = stage == deepspeed.zero_stage
        states = model_state_bytes(
            num_parameters=shape.num_parameters,
            zero_stage=stage,
            precision=precision,
            num_ranks=world_size,
            gradient_bytes=4,
            offload_optimizer=chosen and deepspeed.offload_optimizer,
            offload_parameters=chosen and deepspeed.offload_param,
        )
        host = f", and {states.host / 1e9:.2f} GB of host memory" if states.host else ""
        line = f"  ZeRO {stage}   {(states.device + averaged + activations) / 1e9:6.2f} GB, of which model states {(states.device + averaged) / 1e9:.2f} GB{host}"
        lines.append(f"{line}   <- this run" if chosen else line)
    return lines
