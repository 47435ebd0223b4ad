"""The DeepSpeed JSON meets the recipe:
what is filled in, what is written out for exactness, and that deepspeed accepts the result.
"""

from __future__ import annotations

from typing import Any

import pytest
from helpers.processes import ROOT

from mtdnn_ds.config.deepspeed import ResolvedDeepSpeed, load_deepspeed_json, resolve_deepspeed
from mtdnn_ds.config.deepspeed_keys import REFUSED, SECTIONS, TOP_LEVEL
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.recipe import Recipe

SLOW_CPU: dict[str, Any] = {
    "device_type": "cpu",
    "fast_bf16": False,
    "fp16_supported": False,
    "world_size": 2,
}
GPU: dict[str, Any] = {"device_type": "cuda", "fast_bf16": True, "fp16_supported": True, "world_size": 2}
FP32_ON_A_GPU = (
    "ds.json: fp32 with TF32 off: exact, and slow on a GPU; ds_configs/zero2.json computes in bf16"
)

# file -> (stage, precision on a GPU with bf16,
# precision on a CPU without, offload of optimizer and parameters)
SHIPPED: dict[str, tuple[int, str, str | None, bool]] = {
    "zero0.json": (0, "autocast_bf16", "fp32", False),
    "zero1.json": (1, "bf16", "fp32", False),
    "zero2.json": (2, "bf16", "fp32", False),
    "zero3.json": (3, "bf16", "fp32", False),
    "zero2_fp16.json": (2, "fp16", None, False),
    "zero2_fp32.json": (2, "fp32", "fp32", False),
    "zero3_offload.json": (3, "bf16", "fp32", True),
}


def recipe(**optimizer: Any) -> Recipe:
    return Recipe.model_validate(
        {"encoder": {"path": "e"}, "tasks": ["a"], "train": {"steps": 1}, "optimizer": optimizer}
    )


def resolve(
    settings: dict[str, Any], machine: dict[str, Any] = SLOW_CPU, **optimizer: Any
) -> ResolvedDeepSpeed:
    return resolve_deepspeed(settings, recipe(**optimizer), source="ds.json", **machine)


def shipped(name: str) -> dict[str, Any]:
    return load_deepspeed_json(str(ROOT / "ds_configs" / name))


def test_every_shipped_file_is_listed_here() -> None:
    assert sorted(path.name for path in (ROOT / "ds_configs").iterdir()) == sorted(SHIPPED)


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_shipped_files_resolve(name: str) -> None:
    stage, on_gpu, on_cpu, offloads = SHIPPED[name]
    resolved = resolve(shipped(name), GPU)
    assert (resolved.zero_stage, resolved.precision, resolved.offload_optimizer, resolved.offload_param) == (
        stage,
        on_gpu,
        offloads,
        offloads,
    )
    assert resolved.config["data_types"]["grad_accum_dtype"] == "fp32"
    assert resolved.config["checkpoint"]["tag_validation"] == "Fail"
    if on_cpu is not None:
        assert resolve(shipped(name)).precision == on_cpu


@pytest.mark.parametrize(
    ("name", "machine"),
    [
        *((name, GPU) for name in SHIPPED),
        *((name, SLOW_CPU) for name in SHIPPED if SHIPPED[name][2] is not None),
    ],
    ids=lambda value: value if isinstance(value, str) else value["device_type"],
)
def test_deepspeed_accepts_what_is_resolved(name: str, machine: dict[str, Any]) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    resolved = resolve(shipped(name), {**machine, "world_size": 1}, gradient_clipping=0.0)
    theirs = DeepSpeedConfig(resolved.config)
    assert (
        theirs.train_batch_size,
        theirs.train_micro_batch_size_per_gpu,
        theirs.gradient_accumulation_steps,
    ) == (32, 32, 1)
    assert theirs.zero_optimization_stage == SHIPPED[name][0]
    assert theirs.gradient_clipping == 0.0  # theirs would be 1.0 were the key left out
    assert theirs.grad_accum_dtype == "fp32"
    assert (theirs.bfloat16_config.enabled, theirs.float16_config.enabled) == (
        resolved.precision == "bf16",
        resolved.precision == "fp16",
    )
    assert theirs.torch_autocast_enabled == resolved.precision.startswith("autocast")
    assert theirs.checkpoint_tag_validation_fail
    offload = theirs.zero_config.offload_optimizer
    assert (offload is not None and offload.device == "cpu") == resolved.offload_optimizer


def test_everything_shared_is_filled_in() -> None:
    auto = dict.fromkeys(
        (
            "train_batch_size",
            "train_micro_batch_size_per_gpu",
            "gradient_accumulation_steps",
            "gradient_clipping",
        ),
        "auto",
    )
    given = {**auto, "optimizer": "auto", "scheduler": "auto", "zero_optimization": {"stage": 1}}
    expected = {
        "train_batch_size": 32,
        "train_micro_batch_size_per_gpu": 16,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.5,
        "zero_optimization": {"stage": 1},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "checkpoint": {"tag_validation": "Fail"},
        "steps_per_print": 1_000_000_000,
    }
    assert resolve(given, gradient_clipping=0.5).config == expected
    assert resolve({"zero_optimization": {"stage": 1}}, gradient_clipping=0.5).config == expected


def test_examples_that_ranks_cannot_share_evenly_get_a_nominal_batch_size() -> None:
    config = resolve({}, {**SLOW_CPU, "world_size": 3}).config
    assert (config["train_batch_size"], config["train_micro_batch_size_per_gpu"]) == (33, 11)


def test_numbers_that_agree_with_the_recipe_are_accepted() -> None:
    params = {"lr": 5e-5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": "auto"}
    given = {
        "train_batch_size": 32,
        "gradient_clipping": 1,
        "gradient_accumulation_steps": 1,
        "optimizer": {"type": "AdamW", "params": params},
    }
    assert "optimizer" not in resolve(given).config


def test_gradient_norms_of_tasks_need_whole_parameters() -> None:
    wanted = Recipe.model_validate(
        {"encoder": {"path": "e"}, "tasks": ["a"], "train": {"steps": 1, "gradient_norms_every": 5}}
    )
    with pytest.raises(ConfigError) as error:
        resolve_deepspeed({"zero_optimization": {"stage": 3}}, wanted, source="ds.json", **SLOW_CPU)
    assert error.value.problems == (
        "ds.json: zero_optimization.stage=3: train.gradient_norms_every=5 of the recipe needs whole "
        "parameters, which stage 3 cuts up; use stage 2 (ds_configs/zero2.json), or set the former to 0",
    )
    resolve_deepspeed({"zero_optimization": {"stage": 2}}, wanted, source="ds.json", **SLOW_CPU)


def test_resolving_twice_changes_nothing() -> None:
    once = resolve(shipped("zero2.json"), GPU, name="adamax")
    assert resolve(once.config, GPU, name="adamax").config == once.config


def test_the_given_settings_are_left_as_they_are() -> None:
    settings = {"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}, "bf16": {"enabled": "auto"}}
    resolve(settings)
    assert settings == {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"},
        "bf16": {"enabled": "auto"},
    }


@pytest.mark.parametrize(
    ("sections", "machine", "precision", "notes"),
    [
        ({"bf16": {"enabled": "auto"}}, GPU, "bf16", ()),
        (
            {"bf16": {"enabled": "auto"}},
            SLOW_CPU,
            "fp32",
            (
                (
                    "ds.json: bf16 'auto': this CPU has no fast bf16 instructions; "
                    "training in fp32; set bf16.enabled to true to force it"
                ),
            ),
        ),
        ({"bf16": {"enabled": True}}, SLOW_CPU, "bf16", ()),
        ({"bf16": {"enabled": False}}, GPU, "fp32", (FP32_ON_A_GPU,)),
        ({"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}}, GPU, "bf16", ()),
        ({"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}}, {**GPU, "fast_bf16": False}, "fp16", ()),
        (
            {"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}},
            SLOW_CPU,
            "fp32",
            (
                (
                    "ds.json: bf16 and fp16 'auto': this CPU has no fast bf16 and no fp16 instructions; "
                    "training in fp32; set bf16.enabled to true to force it"
                ),
            ),
        ),
        (
            {"zero_optimization": {"stage": 0}, "torch_autocast": {"enabled": "auto"}},
            GPU,
            "autocast_bf16",
            (),
        ),
        ({}, GPU, "fp32", (FP32_ON_A_GPU,)),
        ({}, SLOW_CPU, "fp32", ()),
    ],
)
def test_precision(
    sections: dict[str, Any], machine: dict[str, Any], precision: str, notes: tuple[str, ...]
) -> None:
    resolved = resolve({"zero_optimization": {"stage": 2}, **sections}, machine)
    assert (resolved.precision, resolved.notes) == (precision, notes)
    enabled = {
        name for name in ("bf16", "fp16", "torch_autocast") if resolved.config.get(name, {}).get("enabled")
    }
    assert enabled == ({"torch_autocast"} if precision.startswith("autocast") else {precision} - {"fp32"})


def test_automatic_bucket_sizes_become_deepspeeds_own_and_say_so() -> None:
    resolved = resolve({"zero_optimization": {"stage": 3, "stage3_prefetch_bucket_size": "auto"}})
    assert resolved.config["zero_optimization"] == {"stage": 3}
    assert resolved.notes == (
        "ds.json: zero_optimization.stage3_prefetch_bucket_size 'auto': DeepSpeed's default is used",
    )


def test_adamax_gets_the_switches_that_deepspeed_asks_for() -> None:
    zero2 = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    resolved = resolve(zero2, name="adamax")
    assert (
        resolved.config["zero_allow_untested_optimizer"],
        resolved.config["zero_force_ds_cpu_optimizer"],
    ) == (True, False)
    assert resolved.notes == (
        (
            "ds.json: optimizer.name=adamax runs in PyTorch on the offloaded states; "
            "deepspeed_adamw (its CPU Adam) is faster"
        ),
    )
    assert "zero_allow_untested_optimizer" not in resolve(zero2).config


def test_no_offload_is_no_offload() -> None:
    resolved = resolve({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}}})
    assert not resolved.offload_optimizer and resolved.config["zero_optimization"] == {"stage": 2}


def test_monitors_and_timers_pass_through() -> None:
    given = {
        "tensorboard": {"enabled": True, "output_path": "x"},
        "wall_clock_breakdown": True,
        "steps_per_print": 10,
        "wandb": {"enabled": False},
    }
    config = resolve(given).config
    assert {key: config[key] for key in given} == given


def test_the_tables_know_every_key_of_the_installed_deepspeed() -> None:
    from deepspeed.runtime import config as theirs
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    models = {
        "zero_optimization": DeepSpeedZeroConfig,
        "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
        "zero_optimization.offload_param": DeepSpeedZeroOffloadParamConfig,
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
    }
    for section, model in models.items():
        known = {name for field, info in model.model_fields.items() for name in (field, info.alias) if name}
        refused = {name.rpartition(".")[2] for name in REFUSED if name.rpartition(".")[0] == section}
        removed = set(theirs._REMOVED_ZERO_CONFIG_KEYS) if section == "zero_optimization" else set()
        assert set(SECTIONS[section]) | refused == known | removed, section
    assert set(theirs._REMOVED_TOP_LEVEL_CONFIG_KEYS) <= set(REFUSED)
    assert not set(TOP_LEVEL) & set(REFUSED)
