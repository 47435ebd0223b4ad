"""`plan`: what a run would do, from its recipe and prepared data alone.

Trains nothing and loads no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mtdnn_ds.train.preflight.checks import CheckedRun, checked_stages

if TYPE_CHECKING:
    from rich.table import Table

    from mtdnn_ds.check.forecast import EncoderShape, StepSample
    from mtdnn_ds.config.recipe import Recipe
    from mtdnn_ds.data.plan.task_part import Plan

_GB = 1e9


def run(
    *, recipe: str, deepspeed_config: str, world_size: int, skip_findings: bool, overrides: Mapping[str, str]
) -> int:
    """Print the plan of `recipe`, or of each of its stages, for `world_size` ranks; returns the exit code."""
    from mtdnn_ds.monitor.console import configure_logging

    configure_logging("warning", rank=0)
    for stage, checked in checked_stages(recipe, deepspeed_config, overrides, world_size=world_size):
        title = recipe
        if stage.name:
            title += f", stage {stage.name}"
        if stage.source:
            title += f", begins with {stage.source} ({checked.recipe.init.checkpoint})"
        _show(title, checked, world_size, finds=not skip_findings)
    return 0


def _show(title: str, checked: CheckedRun, world_size: int, *, finds: bool) -> None:
    from mtdnn_ds.check.forecast import encoder_shape, sample_steps
    from mtdnn_ds.check.mixture import mixture_findings
    from mtdnn_ds.monitor.console import print_table
    from mtdnn_ds.runs.setup import build_plan, idle_tasks, prepare_run_data

    for note in checked.deepspeed.notes:
        print(note)
    data = prepare_run_data(checked.recipe, checked.specs)
    plan = build_plan(checked.recipe, data)
    shape = encoder_shape(checked.recipe)
    sample = sample_steps(checked.recipe, data, plan, world_size=world_size, hidden_size=shape.hidden_size)

    print_table(_table(title, plan, data.train_sizes))
    for line in (
        *_step_lines(checked.recipe, sample, world_size),
        *_memory_lines(checked, shape, sample.most_tokens, world_size),
        *idle_tasks(plan),
        f"plan fingerprint {plan.fingerprint[:16]}",
    ):
        print(line)

    if finds:
        findings = mixture_findings(data, plan)
        print(f"{len(findings)} findings in the data:" if findings else "no findings in the data")
        for line in findings:
            print(f"  {line}")


def _table(title: str, plan: Plan, train_sizes: Mapping[str, int]) -> Table:
    from rich.table import Table

    mixing = plan.mixing if plan.order is None else f"{plan.mixing}, order {plan.order}"
    table = Table(title=f"{title}: {plan.length}, mixing {mixing}")
    table.add_column("task")
    for column in ("rows", "rate", "examples", "epochs", "first step", "last step"):
        table.add_column(column, justify="right")

    drawn, epochs = plan.drawn(plan.total_steps), plan.epochs(plan.total_steps)
    first, last = plan.task_counts(1), plan.task_counts(plan.total_steps)
    for index, name in enumerate(plan.task_names):
        if name not in plan.trained_tasks:
            continue
        table.add_row(
            name,
            f"{train_sizes[name]:,}",
            f"{drawn[index] / drawn.sum():.4f}",
            f"{drawn[index]:,}",
            f"{epochs[index]:.2f}",
            f"{first[index]:,}",
            f"{last[index]:,}",
        )
    return table


def _step_lines(recipe: Recipe, sample: StepSample, world_size: int) -> list[str]:
    ranks = "1 rank" if world_size == 1 else f"{world_size:,} ranks"
    most, filled = recipe.batch.max_tokens_per_micro_batch, sample.packing_efficiency
    padding, imbalance, worst = sample.padding_efficiency, sample.imbalance_mean, sample.imbalance_most
    return [
        f"over {sample.num_steps} steps spread over the run, on {ranks}:",
        f"  tokens a step          {sample.tokens:,.0f}",
        f"  micro-batches a rank   {sample.micro_batches:.2f}, of at most {most:,} tokens, "
        f"filled to {filled:.1%}",
        f"  padding efficiency     {padding:.4f} (1 = token-wise layers see real tokens only)",
        f"  rank imbalance         {imbalance:.4f} on average, {worst:.4f} at most",
    ]


def _memory_lines(checked: CheckedRun, shape: EncoderShape, most_tokens: int, world_size: int) -> list[str]:
    from mtdnn_ds.check.forecast import estimate_memory

    memory = estimate_memory(
        checked.recipe, checked.deepspeed, shape, most_tokens=most_tokens, world_size=world_size
    )
    about = (
        f"{shape.num_parameters / 1e6:,.1f} M parameters, {checked.deepspeed.precision}; "
        f"activations {memory[0].activations / _GB:.2f} GB at {most_tokens:,} tokens"
    )
    lines = [f"memory a rank, estimated ({about}):"]
    for each in memory:
        line = (
            f"  ZeRO {each.zero_stage}   {each.device / _GB:6.2f} GB, "
            f"of which model states {each.model_states / _GB:.2f} GB"
        )
        if each.host:
            line += f", and {each.host / _GB:.2f} GB of host memory"
        if each.zero_stage == checked.deepspeed.zero_stage:
            line += "   <- this run"
        lines.append(line)
    return lines
