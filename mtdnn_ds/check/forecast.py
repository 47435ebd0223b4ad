"""What a run would be like, from its recipe and prepared data alone: how steps pack, and what memory a rank
needs.

Loads no weights, trains nothing, prints nothing: commands/plan.py shows what is found here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from mtdnn_ds.config.deepspeed import ResolvedDeepSpeed
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.batches.loader import LoaderSettings, example_lengths, pack_examples, padding_efficiency
from mtdnn_ds.data.plan.task_part import Plan
from mtdnn_ds.model.hf_config import encoder_config
from mtdnn_ds.model.sharing import num_parameters
from mtdnn_ds.monitor.flops import activation_bytes, model_state_bytes
from mtdnn_ds.runs.setup import RunData, loader_settings, recipe_sharing

SAMPLED_STEPS = 50
ZERO_STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderShape:
    """What the size of an encoder follows from."""

    num_parameters: int  # of all copies, and with low-rank changes
    num_layers: int
    hidden_size: int
    intermediate_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSample:
    """Averages and extremes over steps spread evenly over a run."""

    num_steps: int
    tokens: float  # per step, all ranks
    micro_batches: float  # per step and rank
    packing_efficiency: float  # tokens / what the micro-batches could hold
    padding_efficiency: float  # tokens / tokens that token-wise layers see
    imbalance_mean: float
    imbalance_most: float
    most_tokens: int  # in one micro-batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of one rank under one stage of ZeRO, estimated."""

    zero_stage: int
    model_states: float
    activations: float
    host: float  # of offloaded states

    @property
    def device(self) -> float:
        """Bytes on the device."""
        return self.model_states + self.activations


def encoder_shape(recipe: Recipe) -> EncoderShape:
    """Sizes of the recipe's encoder from its config alone: its weights are neither read nor allocated."""
    from transformers import AutoModel

    config = encoder_config(recipe.encoder)
    with torch.device("meta"):
        model = AutoModel.from_config(config, trust_remote_code=recipe.encoder.trust_remote_code)

    return EncoderShape(
        num_parameters=num_parameters(model, recipe_sharing(recipe)),
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=getattr(config, "intermediate_size", 4 * config.hidden_size),
    )


def sample_steps(
    recipe: Recipe, data: RunData, plan: Plan, *, world_size: int, hidden_size: int
) -> StepSample:
    """Pack up to SAMPLED_STEPS steps as a run on `world_size` ranks would."""
    settings = loader_settings(
        recipe, hidden_size=hidden_size, rank=0, world_size=world_size, device=torch.device("cpu")
    )
    lengths = [examples.lengths for examples in data.train_sets]
    steps = np.unique(np.linspace(1, plan.total_steps, min(SAMPLED_STEPS, plan.total_steps)).astype(int))

    rows, longest = [], []
    for step in steps:
        row, most_tokens = _packed_step(plan, int(step), lengths, settings)
        rows.append(row)
        longest.append(most_tokens)

    means = np.mean(rows, axis=0)
    return StepSample(
        num_steps=len(steps),
        tokens=float(means[0]),
        micro_batches=float(means[1]),
        packing_efficiency=float(means[2]),
        padding_efficiency=float(means[3]),
        imbalance_mean=float(means[4]),
        imbalance_most=float(np.max(rows, axis=0)[4]),
        most_tokens=max(longest),
    )


def _packed_step(
    plan: Plan, step: int, lengths: list[np.ndarray], settings: LoaderSettings
) -> tuple[tuple[float, ...], int]:
    """(tokens, micro-batches, packing efficiency, padding efficiency, imbalance), most tokens of a
    micro-batch.
    """
    examples = plan.step(step)
    lengths_B = example_lengths(examples.task_ids, examples.rows, lengths)
    packing = pack_examples(lengths_B, examples.task_ids, settings)

    row = (
        packing.tokens,
        packing.num_micro_batches,
        packing.packing_efficiency,
        padding_efficiency(packing, lengths_B, examples.task_ids, settings),
        packing.rank_imbalance,
    )

    bins = [members for rank in packing.micro_batches for members in rank]
    return row, max(int(lengths_B[members].sum()) for members in bins)


def estimate_memory(
    recipe: Recipe, deepspeed: ResolvedDeepSpeed, shape: EncoderShape, *, most_tokens: int, world_size: int
) -> list[Memory]:
    """A rank's memory under each stage of ZeRO; offloading counts for the run's own stage.

    `most_tokens`: of a micro-batch.
    """
    activations = activation_bytes(
        num_tokens=most_tokens,
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        bytes_per_value=4 if deepspeed.precision == "fp32" else 2,
        gradient_checkpointing=recipe.encoder.gradient_checkpointing,
    )
    if recipe.regularizer.name in ("smart", "r_drop"):
        activations *= 2  # two passes go backward together
    averaged = 4 * shape.num_parameters if recipe.regularizer.proximal_factor else 0

    found = []
    for stage in ZERO_STAGES:
        is_chosen = stage == deepspeed.zero_stage
        states = model_state_bytes(
            num_parameters=shape.num_parameters,
            zero_stage=stage,
            precision=deepspeed.precision,
            num_ranks=world_size,
            gradient_bytes=4,
            offload_optimizer=is_chosen and deepspeed.offload_optimizer,
            offload_parameters=is_chosen and deepspeed.offload_param,
        )
        found.append(
            Memory(
                zero_stage=stage,
                model_states=states.device + averaged,
                activations=activations,
                host=states.host,
            )
        )
    return found
