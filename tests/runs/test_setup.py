"""How a recipe's micro-batches are cut, on CPUs and on GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from mtdnn_ds.batch.groups import CPU_COSTS, CUDA_COSTS
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.data.batches.loader import LoaderSettings
from mtdnn_ds.runs.setup import loader_settings


def settings_of(folder: Path, encoder: Path, device: str, batch: dict[str, int]) -> LoaderSettings:
    recipe = {"encoder": {"path": str(encoder)}, "tasks": ["rte"], "train": {"steps": 1}, "batch": batch}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return loader_settings(
        load_recipe(str(folder / "recipe.yaml"), {}),
        hidden_size=32,
        rank=0,
        world_size=1,
        device=torch.device(device),
    )


@pytest.mark.parametrize(
    ("device", "batch", "multiple"),
    [
        ("cpu", {"max_tokens_per_micro_batch": 16384}, 1),
        ("cuda", {"max_tokens_per_micro_batch": 512}, 64),
        ("cuda", {"max_tokens_per_micro_batch": 16384}, 256),
        ("cuda", {"max_tokens_per_micro_batch": 20000}, 32),
        ("cuda", {"max_tokens_per_micro_batch": 4097}, 1),
        ("cuda", {"max_tokens_per_micro_batch": 65536}, 512),
        ("cuda", {"max_tokens_per_micro_batch": 16384, "pad_tokens_to": 1}, 1),
        ("cpu", {"max_tokens_per_micro_batch": 4800, "pad_tokens_to": 48}, 48),
    ],
)
def test_micro_batches_are_filled_up_on_gpus_and_where_it_is_asked_for(
    tmp_path: Path, tiny_encoder: Path, device: str, batch: dict[str, int], multiple: int
) -> None:
    settings = settings_of(tmp_path, tiny_encoder, device, batch)
    assert settings.pad_tokens_to == multiple
    assert settings.group_costs == {"cpu": CPU_COSTS, "cuda": CUDA_COSTS}[device]
    assert settings.pin_memory == (device == "cuda")


def test_a_filler_never_makes_a_micro_batch_larger_than_it_may_be(tmp_path: Path, tiny_encoder: Path) -> None:
    with pytest.raises(ConfigError) as error:
        settings_of(tmp_path, tiny_encoder, "cpu", {"max_tokens_per_micro_batch": 256, "pad_tokens_to": 8192})
    assert error.value.problems == (
        f"{tmp_path}/recipe.yaml: batch: pad_tokens_to=8192 must divide max_tokens_per_micro_batch=256: "
        "a filled micro-batch has at most as many tokens",
    )
