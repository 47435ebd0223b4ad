"""Tables of what a DeepSpeed JSON may contain, for deepspeed 0.19.8. Names and reasons only; the checks are
in deepspeed_check.py.

Read from deepspeed.runtime.config and .constants, deepspeed.runtime.zero.config and .offload_config, and
deepspeed.runtime.precision_config of that release. DeepSpeed itself accepts any misspelt top-level key in
silence, which is why the list exists; a test compares it with the installed release.
"""

from __future__ import annotations

from typing import Final

DEEPSPEED_VERSION: Final = "0.19.8"

# Value kinds: "flag" true/false, "whole" a whole number, "number", "text", "names" a list of text, "section",
# "any", or words to choose from: "cpu|none".
TOP_LEVEL: Final[dict[str, str]] = {
    "train_batch_size": "whole",
    "train_micro_batch_size_per_gpu": "whole",
    "gradient_accumulation_steps": "whole",
    "gradient_clipping": "number",
    "optimizer": "any",
    "scheduler": "any",
    "bf16": "section",
    "fp16": "section",
    "torch_autocast": "section",
    "data_types": "section",
    "zero_optimization": "section",
    "zero_allow_untested_optimizer": "flag",
    "zero_force_ds_cpu_optimizer": "flag",
    "communication_data_type": "text",
    "disable_allgather": "flag",
    "steps_per_print": "number",
    "wall_clock_breakdown": "flag",
    "memory_breakdown": "flag",
    "dump_state": "flag",
    "disable_python_gc": "flag",
    "log_level": "any",
    "checkpoint": "section",
    "aio": "section",
    "timers": "section",
    "comms_logger": "section",
    "flops_profiler": "section",
    "tensorboard": "section",
    "wandb": "section",
    "comet": "section",
    "csv_monitor": "section",
}

OFFLOAD_OPTIMIZER: Final[dict[str, str]] = {
    "device": "cpu|none",
    "buffer_count": "whole",
    "pin_memory": "flag",
    "pipeline_read": "flag",
    "pipeline_write": "flag",
    "fast_init": "flag",
    "ratio": "number",
}
OFFLOAD_PARAM: Final[dict[str, str]] = {
    "device": "cpu|none",
    "buffer_count": "whole",
    "buffer_size": "whole",
    "max_in_cpu": "whole",
    "pin_memory": "flag",
}

_STAGE3: Final[dict[str, str]] = {
    "prefetch_bucket_size": "whole",
    "param_persistence_threshold": "whole",
    "model_persistence_threshold": "whole",
    "max_live_parameters": "whole",
    "max_reuse_distance": "whole",
    "gather_16bit_weights_on_model_save": "flag",
    "module_granularity_threshold": "whole",
    "use_all_reduce_for_fetch_params": "flag",
    "allgather_sequential": "flag",
}
ZERO: Final[dict[str, str]] = {
    "stage": "whole",
    "contiguous_gradients": "flag",
    "reduce_scatter": "flag",
    "reduce_bucket_size": "whole",
    "use_multi_rank_bucket_allreduce": "flag",
    "allgather_partitions": "flag",
    "allgather_bucket_size": "whole",
    "overlap_comm": "flag",
    "load_from_fp32_weights": "flag",
    "offload_param": "section",
    "offload_optimizer": "section",
    "sub_group_size": "whole",
    "ignore_unused_parameters": "flag",
    "round_robin_gradients": "flag",
    "parameter_alignment": "flag",
    "zero_hpz_partition_size": "whole",
    "memory_efficient_linear": "flag",
    "override_module_apply": "flag",
    "log_trace_cache_warnings": "flag",
    "enable_sanity_checks": "flag",
    "leaf_module": "section",
    **_STAGE3,  # each also under its older name, which is the one that documentation shows
    **{f"stage3_{name}": kind for name, kind in _STAGE3.items()},
}

BF16: Final[dict[str, str]] = {
    "enabled": "flag",
    "immediate_grad_update": "flag",
    "check_grad_overflow": "flag",
}
FP16: Final[dict[str, str]] = {
    "enabled": "flag",
    "auto_cast": "flag",
    "loss_scale": "number",
    "initial_scale_power": "whole",
    "loss_scale_window": "whole",
    "hysteresis": "whole",
    "consecutive_hysteresis": "flag",
    "min_loss_scale": "whole",
}
TORCH_AUTOCAST: Final[dict[str, str]] = {
    "enabled": "flag",
    "dtype": "text",
    "lower_precision_safe_modules": "names",
}
DATA_TYPES: Final[dict[str, str]] = {
    "grad_accum_dtype": "text",
    "param_dtype": "text",
    "buffer_dtype": "text",
    "keep_in_fp32_modules": "any",
}
CHECKPOINT: Final[dict[str, str]] = {
    "tag_validation": "Ignore|Warn|Fail",
    "parallel_write": "section",
}
_MONITOR: Final[dict[str, str]] = {"enabled": "flag", "output_path": "text", "job_name": "text"}
WANDB: Final[dict[str, str]] = {"enabled": "flag", "group": "text", "team": "text", "project": "text"}
COMET: Final[dict[str, str]] = {
    "enabled": "flag",
    "samples_log_interval": "whole",
    "project": "text",
    "workspace": "text",
    "api_key": "text",
    "experiment_name": "text",
    "experiment_key": "text",
    "online": "flag",
    "mode": "text",
}
FLOPS_PROFILER: Final[dict[str, str]] = {
    "enabled": "flag",
    "recompute_fwd_factor": "number",
    "profile_step": "whole",
    "module_depth": "any",
    "top_modules": "whole",
    "detailed": "flag",
    "output_file": "any",
}
COMMS_LOGGER: Final[dict[str, str]] = {
    "enabled": "flag",
    "prof_all": "flag",
    "prof_ops": "names",
    "verbose": "flag",
    "debug": "flag",
}

SECTIONS: Final[dict[str, dict[str, str]]] = {
    "bf16": BF16,
    "fp16": FP16,
    "torch_autocast": TORCH_AUTOCAST,
    "data_types": DATA_TYPES,
    "checkpoint": CHECKPOINT,
    "tensorboard": _MONITOR,
    "csv_monitor": _MONITOR,
    "wandb": WANDB,
    "comet": COMET,
    "flops_profiler": FLOPS_PROFILER,
    "comms_logger": COMMS_LOGGER,
    "zero_optimization": ZERO,
    "zero_optimization.offload_optimizer": OFFLOAD_OPTIMIZER,
    "zero_optimization.offload_param": OFFLOAD_PARAM,
}

# Known to DeepSpeed or to an older DeepSpeed, and refused here: full name -> why, and what to do instead.
_GONE = f"removed from DeepSpeed {DEEPSPEED_VERSION}"
_LOSSY = "rounds what ranks exchange, so the gradient would depend on the number of ranks; remove it"
_ELSEWHERE = "mtdnn_ds makes no use of it; remove it"
REFUSED: Final[dict[str, str]] = {
    "amp": f"{_GONE} with NVIDIA apex's amp; use bf16, fp16 or torch_autocast",
    "elasticity": f"{_GONE}; --resume goes on with any number of ranks without it, remove it",
    "nebula": f"{_GONE}; remove it",
    "compression_training": f"{_GONE}; remove it",
    "quantize_training": f"{_GONE}; remove it",
    "sparse_gradients": f"{_GONE}; remove it",
    "eigenvalue": f"{_GONE}; remove it",
    "sparse_attention": f"{_GONE}; choose encoder.attention in the recipe",
    "graph_harvesting": f"{_GONE}; remove it",
    "curriculum_learning": f"{_GONE}; the order of examples is the recipe's mixture, remove it",
    "progressive_layer_drop": f"{_GONE}; remove it",
    "zero_optimization.mics_shard_size": f"{_GONE}; use zero_hpz_partition_size with stage 3",
    "zero_optimization.mics_hierarchical_params_gather": f"{_GONE}; remove it",
    "zero_optimization.zeropp_loco_param": f"{_GONE}; remove it",
    "bfloat16": "the old name; write bf16",
    "prescale_gradients": "moves where gradients are averaged, and losses are scaled for DeepSpeed's "
    "default; remove it",
    "gradient_predivide_factor": "moves where gradients are averaged, and losses are scaled for DeepSpeed's "
    "default; remove it",
    "gradient_allreduce_op": "losses are scaled for DeepSpeed's default, the mean over ranks; remove it",
    "managed_gradient_accumulation": "the trainer tells DeepSpeed itself where each step ends; remove it",
    "seq_parallel_communication_data_type": _ELSEWHERE,
    "sequence_parallel_size": "sequences are not split over ranks here; remove it",
    "tensor_parallel": "layers are not split over ranks here; use ZeRO stage 3 for models that do not fit",
    "expert_parallel": _ELSEWHERE,
    "use_data_before_expert_parallelism": _ELSEWHERE,
    "pipeline": "layers are not spread over ranks here; use ZeRO stage 3 for models that do not fit",
    "hybrid_engine": _ELSEWHERE,
    "weight_quantization": _ELSEWHERE,
    "compile": "DeepCompile needs the same graph in every micro-batch; remove it",
    "autotuning": "it re-runs the script with batch sizes of its own, which the recipe decides here; remove "
    "it",
    "data_efficiency": "which examples make up a step is the recipe's mixture; remove it",
    "dataloader_drop_last": "which examples make up a step is the recipe's mixture; remove it",
    "activation_checkpointing": "set encoder.gradient_checkpointing in the recipe instead",
    "datastates_ckpt": "checkpoints are verified file by file, which an asynchronous writer does not allow; "
    "remove it",
    "vocabulary_size": _ELSEWHERE,
    "zero_optimization.cpu_offload": 'the old form; write "offload_optimizer": {"device": "cpu"}',
    "zero_optimization.cpu_offload_param": 'the old form; write "offload_param": {"device": "cpu"}',
    "zero_optimization.cpu_offload_use_pin_memory": "the old form; write pin_memory inside "
    "offload_optimizer and offload_param",
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": "the old name; write "
    "stage3_gather_16bit_weights_on_model_save",
    "zero_optimization.legacy_stage1": "the old stage 1; remove it",
    "zero_optimization.elastic_checkpoint": "has no effect in this DeepSpeed; --resume goes on with any "
    "number of ranks without it, remove it",
    "zero_optimization.compute_grad_norm": "the gradient norm is logged and clipped in every step; remove it",
    "zero_optimization.zero_quantized_weights": _LOSSY,
    "zero_optimization.zero_quantized_nontrainable_weights": _LOSSY,
    "zero_optimization.zero_quantized_gradients": _LOSSY,
    "zero_optimization.zenflow": "updates some weights late, so steps would not be exact; remove it",
    "zero_optimization.save_muon_momentum_buffer_in_memory": "there is no Muon optimizer here; remove it",
    "zero_optimization.offload_optimizer.nvme_path": 'only device "cpu" is supported; remove it',
    "zero_optimization.offload_param.nvme_path": 'only device "cpu" is supported; remove it',
    "zero_optimization.offload_optimizer.super_offload": "applies gradients late and undoes steps, so steps "
    "would not be exact; remove it",
    "zero_optimization.offload_optimizer.cpuadam_cores_perc": "has an effect with super_offload only; "
    "remove it",
    "bf16.bf16_master_weights_and_grads": "weights and gradients are kept in fp32; remove it",
    "bf16.bf16_optimizer_states": "optimizer states are kept in fp32; remove it",
    "fp16.fp16_master_weights_and_grads": "weights and gradients are kept in fp32; remove it",
    "checkpoint.load_universal": "--resume reads its own checkpoints, at any ZeRO stage and number of "
    "ranks; remove it",
    "checkpoint.use_node_local_storage": "checkpoints are verified as a whole, in one folder that all nodes "
    "see; remove it",
    "zero_optimization.pipeline_loading_checkpoint": "fails on loading at stages 1 and 2; remove it",
    "checkpoint.writer": "checkpoints are verified file by file, which needs DeepSpeed's default writer; "
    "remove it",
    "checkpoint.checkpoint_serialization": "checkpoints are verified file by file, which needs DeepSpeed's "
    "default writer; remove it",
}
