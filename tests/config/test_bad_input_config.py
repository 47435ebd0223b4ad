"""Every way to get a recipe,
a DeepSpeed JSON or a flag wrong is refused with words that say where, what and what to do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mtdnn_ds.cli import main
from mtdnn_ds.config.deepspeed import load_deepspeed_json, resolve_deepspeed
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.config.recipe import Recipe

BASE = "encoder: {path: enc}\ntasks: [cola, rte]\ntrain: {steps: 10}\n"

RECIPES = {
    "missing section": (
        "tasks: [cola]\ntrain: {steps: 1}\n",
        "FILE: encoder is missing; write at least encoder.path",
    ),
    "missing key": (
        "encoder: {}\ntasks: [cola]\ntrain: {steps: 1}\n",
        "FILE: encoder.path is missing: hub name, local folder",
    ),
    "no length": (
        "encoder: {path: e}\ntasks: [a]\ntrain: {}\n",
        "FILE: train: give exactly one of steps and epochs",
    ),
    "two lengths": (
        "encoder: {path: e}\ntasks: [a]\ntrain: {steps: 1, epochs: 1}\n",
        "FILE: train: give exactly one of steps and epochs",
    ),
    "no train": (
        "encoder: {path: e}\ntasks: [a]\n",
        "FILE: train is missing; write train.steps or train.epochs",
    ),
    "no task": (
        "encoder: {path: e}\ntasks: []\ntrain: {steps: 1}\n",
        "FILE: tasks: needs at least 1 entry, has 0",
    ),
    "tasks of a wrong kind": (
        "encoder: {path: e}\ntasks: 3\ntrain: {steps: 1}\n",
        "FILE: tasks=3: must be a mapping, one 'name: value' a line",
    ),
    "unknown section": (
        BASE + "optimiser: {}\n",
        "FILE: unknown setting 'optimiser'; did you mean 'optimizer'?",
    ),
    "unknown key": (
        BASE + "batch: {size: 1}\n",
        "FILE: unknown setting 'batch.size'; (known: batch.examples_per_step, batch.max_tokens",
    ),
    "a name of another tool": (
        BASE + "optimizer: {learning_rate: 1}\n",
        "unknown setting 'optimizer.learning_rate'; did you mean 'optimizer.lr'?",
    ),
    "key in a wrong section": (
        BASE + "batch: {lr: 1}\n",
        "unknown setting 'batch.lr'; did you mean 'optimizer.lr'?",
    ),
    "unknown key of a task": (
        "encoder: {path: e}\ntasks: {a: {droput: 0}}\ntrain: {steps: 1}\n",
        "'tasks.a.droput'; did you mean 'tasks.a.dropout'?",
    ),
    "section of a wrong kind": (
        BASE + "batch: 3\n",
        "FILE: batch=3: must be a section with settings under it, one a line",
    ),
    "task of a wrong kind": (
        "encoder: {path: e}\ntasks: {a: 3}\ntrain: {steps: 1}\n",
        "FILE: tasks.a=3: must be a section",
    ),
    "not a number": (BASE + "optimizer: {lr: fast}\n", "FILE: optimizer.lr='fast': must be a number"),
    "not finite": (BASE + "optimizer: {lr: .inf}\n", "FILE: optimizer.lr=inf: must be a finite number"),
    "not whole": (
        BASE + "batch: {examples_per_step: 1.5}\n",
        "FILE: batch.examples_per_step=1.5: must be a whole number",
    ),
    "not a flag": (
        BASE.replace("enc}", "enc, random_init: 1}"),
        "FILE: encoder.random_init=1: must be true or false",
    ),
    "not text": (BASE.replace("enc}", "3}"), "FILE: encoder.path=3: must be text; write it in quotes"),
    "number as a label": (
        "encoder: {path: e}\ntasks: {a: {labels: [0, no]}}\ntrain: {steps: 1}\n",
        "FILE: tasks.a.labels.0=0: must be text; write it in quotes",
    ),
    "not a list": (
        "encoder: {path: e}\ntasks: {a: {labels: x}}\ntrain: {steps: 1}\n",
        "FILE: tasks.a.labels='x': must be a list, e.g. [a, b]",
    ),
    "too many": (
        "encoder: {path: e}\ntasks: {a: {text_columns: [a, b, c]}}\ntrain: {steps: 1}\n",
        "tasks.a.text_columns: takes at most 2 entries, has 3",
    ),
    "too few": (BASE + "optimizer: {betas: [0.9]}\n", "FILE: optimizer.betas: needs more entries, has 1"),
    "too small": (BASE.replace("10", "0"), "FILE: train.steps=0: must be at least 1"),
    "too large": (
        BASE + "mixture: {rates: annealed, anneal_to: 2}\n",
        "FILE: mixture.anneal_to=2: must be at most 1",
    ),
    "dropout of one": (
        "encoder: {path: e}\ntasks: {a: {dropout: 1.0}}\ntrain: {steps: 1}\n",
        "FILE: tasks.a.dropout=1.0: must be below 1",
    ),
    "wrong word": (
        BASE + "optimizer: {name: adam}\n",
        (
            "optimizer.name='adam': must be one of adamw, deepspeed_adamw, "
            "adamax, lamb, apex_adam; did you mean 'adamw'?"
        ),
    ),
    "wrong word or mapping": (
        BASE + "loss: {scale: none}\n",
        (
            "loss.scale='none': must be one of examples, task_mean, log_classes, "
            "uncertainty, dwa, random, famo, or a mapping of task names"
        ),
    ),
    "negative rate": (
        BASE + "mixture: {rates: {cola: -1, rte: 1}}\n",
        "FILE: mixture.rates.cola=-1: must be above 0",
    ),
    "number as a name": (
        "encoder: {path: e}\ntasks: {1: {}}\ntrain: {steps: 1}\n",
        "FILE: tasks.1: a name must be text; write it in quotes",
    ),
    "duplicate key": (BASE + "train: {steps: 2}\n", "FILE:4: key 'train' is given twice; keep one"),
    "duplicate inner key": (
        "encoder:\n  path: a\n  path: b\n",
        "FILE:3: key 'path' is given twice; keep one",
    ),
    "bad syntax": ("encoder:\n  path: a: b\n", "FILE:2: not valid YAML: mapping values are not allowed here"),
    "tab": (
        "encoder:\n\tpath: a\n",
        "FILE:2: not valid YAML: found character '\\t' that cannot start any token",
    ),
    "control character": (
        "encoder: \x07\n",
        "FILE:1: character U+0007 does not belong in a recipe; remove it",
    ),
    "empty": (
        "# nothing\n",
        "FILE: the recipe is empty; it needs at least encoder.path, tasks and train.steps",
    ),
    "a list": ("[1]\n", "FILE: a recipe is a mapping of sections (encoder, tasks, ...), not a list"),
    "temperature unused": (
        BASE + "mixture: {rates: uniform, temperature: 2}\n",
        "mixture.temperature=2.0: has no effect with mixture.rates=uniform; remove it, or",
    ),
    "cap unused": (
        BASE + "mixture: {cap: 5}\n",
        (
            "FILE: mixture.cap=5: has no effect with mixture.rates=proportional; "
            "remove it, or set mixture.rates to cap"
        ),
    ),
    "anneal_to unused": (
        BASE + "mixture: {rates: {cola: 1, rte: 1}, anneal_to: 1}\n",
        "mixture.anneal_to=1.0: has no effect with mixture.rates=a mapping",
    ),
    "power unused": (
        BASE + "schedule: {power: 1}\n",
        (
            "schedule.power=1.0: has no effect with schedule.name=linear; "
            "remove it, or set schedule.name to polynomial"
        ),
    ),
    "final rate unused": (
        BASE + "schedule: {name: constant, final_lr_ratio: 0}\n",
        "schedule.final_lr_ratio=0.0: has no effect with schedule.name=constant",
    ),
    "sha256 unused": (
        BASE.replace("enc}", "enc, random_init: true, sha256: ab}"),
        "encoder.sha256: has no effect with encoder.random_init",
    ),
    "no room": (
        BASE + "batch: {max_tokens_per_micro_batch: 64}\n",
        "encoder.max_length=128 is more than batch.max_tokens_per_micro_batch=64: one long example",
    ),
    "warm-up too long": (
        BASE + "schedule: {warmup: 10}\n",
        "schedule.warmup=10 leaves none of train.steps=10 after the warm-up",
    ),
    "half a warm-up step": (
        BASE + "schedule: {warmup: 1.5}\n",
        "schedule.warmup=1.5: from 1 on it counts steps and must be a whole number",
    ),
    "rate of no task": (
        BASE + "mixture: {rates: {cola: 1, rte: 1, col: 1}}\n",
        "mixture.rates.col: there is no task 'col' in the run; did you mean 'cola'?",
    ),
    "task without rate": (
        BASE + "mixture: {rates: {cola: 1}}\n",
        "FILE: mixture.rates: no rate for rte; with rates of your own every task needs one",
    ),
    "scale of no task": (
        BASE + "loss: {scale: {qqp: 1}}\n",
        "FILE: loss.scale.qqp: there is no task 'qqp' in the run; (known: cola, rte)",
    ),
    "scale's step size unused": (
        BASE + "loss: {scale: dwa, scale_lr: 0.1}\n",
        (
            "loss.scale_lr=0.1: has no effect with loss.scale=dwa; "
            "remove it, or set loss.scale to uncertainty or famo"
        ),
    ),
    "scale's window unused": (
        BASE + "loss: {scale_window: 9}\n",
        "loss.scale_window=9: has no effect with loss.scale=examples; remove it, or set loss.scale to dwa",
    ),
    "an order of steps that hold every task": (
        BASE + "mixture: {order: stratified}\n",
        (
            "mixture.order=stratified: has no effect with mixture.mixing=per_example; "
            "remove it, or set mixture.mixing to per_step"
        ),
    ),
    "part of no task": (
        BASE + "mixture: {only_task: cloa}\n",
        "FILE: mixture.only_task: there is no task 'cloa' in the run; did you mean 'cola'?",
    ),
    "part of a sequence": (
        BASE + "mixture: {only_task: rte, mixing: sequential}\n",
        "FILE: mixture.only_task=rte: in a sequence a task's block begins with what the tasks before it have",
    ),
    "the part that is the whole": (
        BASE.replace("[cola, rte]", "[rte]") + "mixture: {only_task: rte}\n",
        "FILE: mixture.only_task=rte: has no effect, the run has no other task; remove it",
    ),
    "one task, and scales that share out": (
        BASE + "mixture: {only_task: rte}\nloss: {scale: dwa}\n",
        (
            "FILE: loss.scale=dwa: shares a step out among its tasks, "
            "but with mixture.only_task each step has one task; remove it"
        ),
    ),
    "nothing to share out": (
        BASE + "mixture: {mixing: per_step}\nloss: {scale: famo}\n",
        (
            "FILE: loss.scale=famo: shares a step out among its tasks, "
            "but with mixture.mixing=per_step each step has one task; remove it"
        ),
    ),
    "no head idle": (
        "encoder: {path: enc}\ntasks: [cola]\ntrain: {steps: 10}\noptimizer: {idle_heads: freeze}\n",
        (
            "FILE: optimizer.idle_heads=freeze: has no effect: the run has one task, which is in every step; "
            "remove it"
        ),
    ),
    "idle heads frozen anyhow": (
        BASE.replace("steps: 10", "steps: 10, freeze: [heads]") + "optimizer: {idle_heads: freeze}\n",
        "FILE: optimizer.idle_heads=freeze: has no effect: train.freeze has heads; remove it",
    ),
    "regulariser of no task": (
        BASE + "regularizer: {name: smart, tasks: [rte, coal]}\n",
        "FILE: regularizer.tasks: there is no task 'coal' in the run; did you mean 'cola'?",
    ),
    "regulariser's setting without it": (
        BASE + "regularizer: {factor: 2}\n",
        (
            "regularizer.factor=2.0: has no effect with regularizer.name=none; "
            "remove it, or set regularizer.name to smart or r_drop"
        ),
    ),
    "another regulariser's setting": (
        BASE + "regularizer: {name: freelb, noise_std: 0.1}\n",
        "regularizer.noise_std=0.1: has no effect with regularizer.name=freelb",
    ),
    "momentum unused": (
        BASE + "regularizer: {name: smart, proximal_momentum: 0.9}\n",
        "regularizer.proximal_momentum=0.9: has no effect with regularizer.proximal_factor=0; remove it",
    ),
    "lengths of another norm": (
        BASE + "regularizer: {name: smart, norm: l2, radius: 1}\n",
        (
            "FILE: regularizer.step_size: the defaults of smart are lengths in the inf norm of a token; "
            "with another norm give your own"
        ),
    ),
    "regulariser without dropout": (
        BASE.replace("10", "10, dropout: none") + "regularizer: {name: r_drop}\n",
        "FILE: regularizer.name=r_drop: without dropout both passes are equal",
    ),
    "gradient norms beside a regulariser": (
        BASE.replace("10", "10, gradient_norms_every: 5") + "regularizer: {name: smart}\n",
        (
            "FILE: train.gradient_norms_every=5: with regularizer.name=smart a step has more than losses, "
            "and is not taken apart; set the former to 0, or the latter to none"
        ),
    ),
    "gradient norms of a frozen encoder": (
        BASE.replace("10", "10, gradient_norms_every: 5, freeze: [encoder]"),
        (
            "FILE: train.gradient_norms_every=5: has no effect on a frozen encoder, which has no gradient; "
            "remove it, or take encoder out of train.freeze"
        ),
    ),
}

FLAGS = {
    "unknown setting": ("train.setps", "1", "unknown setting '--train.setps'; did you mean '--train.steps'?"),
    "unknown section": ("trian.steps", "1", "unknown setting '--trian.steps'; did you mean '--train.steps'?"),
    "nothing close": (
        "foo.bar",
        "1",
        (
            "unknown setting '--foo.bar'; "
            "(known: batch, board, data, distillation, encoder, heads, init, loss, mixture"
        ),
    ),
    "a section": ("train", "5", "--train: is a section; name one of its settings, e.g. --train.steps"),
    "a whole task": (
        "tasks.cola",
        "5",
        "--tasks.cola: is a section; name one of its settings, e.g. --tasks.cola.kind",
    ),
    "task not in the run": (
        "tasks.col.dropout",
        "0.1",
        "--tasks.col.dropout: task 'col' is not in the run; did you mean 'cola'?",
    ),
    "wrong kind": ("train.steps", "many", "--train.steps many: must be a whole number"),
    "fraction": ("train.steps", "1e1", "--train.steps 1e1: must be a whole number"),
    "out of range": ("optimizer.lr", "-1", "--optimizer.lr -1: must be above 0"),
    "wrong word": (
        "schedule.name",
        "liner",
        "--schedule.name liner: must be one of linear, cosine, polynomial, constant; did you mean 'linear'?",
    ),
    "not a flag": ("encoder.random_init", "yes", "--encoder.random_init yes: must be true or false"),
    "task twice": ("tasks", "cola,cola", "--tasks cola,cola: task 'cola' is named twice; name it once"),
    "no task": ("tasks", ",", "--tasks ,: names no task; write --tasks cola,rte"),
    "too many columns": (
        "tasks.cola.text_columns",
        "a,b,c",
        "--tasks.cola.text_columns a,b,c: takes at most 2 entries, has 3",
    ),
}

COMMANDS = {
    "unknown verb": (
        ["trian"],
        (
            "unknown verb 'trian'; did you mean 'train'? "
            "(known: adapt, bundle, compare, distill, doctor, embed, evaluate, export, import-task-def, "
            "plan, predict, prepare, recipes, report, serve, submit, tasks, train, verify)"
        ),
    ),
    "flag before verb": (["--recipe", "x"], "'--recipe' is a flag; the verb comes first"),
    "unknown flag": (["train", "--resum", "auto"], "unknown flag '--resum'; did you mean '--resume'?"),
    "a setting without its section": (
        ["train", "--lr", "1"],
        "unknown flag '--lr'; did you mean '--optimizer.lr'?",
    ),
    "a flag of nothing": (
        ["train", "--xyzzy", "1"],
        "unknown flag '--xyzzy'; (known: deepspeed_config, log_level, output_dir, recipe, resume)",
    ),
    "a flag that fire would cut": (["train", "--nope"], "--nope: needs a value; write --nope VALUE"),
    "no value": (
        ["train", "--output_dir", "--resume", "none", "--recipe", "x.yaml"],
        "--output_dir: needs a value; write --output_dir VALUE",
    ),
    "twice": (["train", "--resume", "none", "--resume=auto"], "--resume: is given twice; keep one"),
    "twice in two spellings": (
        ["train", "--output-dir", "a", "--output_dir=b"],
        "--output_dir: is given twice; keep one",
    ),
    "separator": (["train", "-"], "'-': means nothing here; remove it"),
    "stray word": (
        ["train", "recipes/glue.yaml"],
        (
            "'recipes/glue.yaml': unexpected; flags are written --name value; "
            "did you mean --recipe recipes/glue.yaml?"
        ),
    ),
    "log level": (
        ["train", "--log_level", "loud"],
        "--log_level loud: must be one of debug, info, warning, error",
    ),
    "world size": (["plan", "--world_size", "0"], "--world_size 0: must be a whole number, at least 1"),
    "no run": (["evaluate"], "--run_dir: is missing: run folder, as train wrote it"),
    "run twice": (["evaluate", "a", "--run_dir", "b"], "'a': --run_dir is given too; keep one"),
    "settings for evaluate": (
        ["evaluate", "a", "--train.steps", "3"],
        "--train.steps: evaluate takes no settings; they come from the run's recipe.yaml",
    ),
    "no such recipe": (
        ["prepare", "--recipe", "nope.yaml"],
        "nope.yaml: there is no such recipe; give the path of an existing file",
    ),
    "flag and setting": (
        ["train", "--resum", "x", "--train.setps", "3"],
        "unknown setting '--train.setps'; did you mean '--train.steps'?",
    ),
    "settings without recipe": (
        ["tasks", "--train.steps", "3"],
        "--train.steps: has an effect with --recipe only",
    ),
    "unknown data setting": (
        ["tasks", "--data.gluedir", "x"],
        "unknown setting 'data.gluedir'; did you mean 'data.glue_dir'?",
    ),
    "launcher flag elsewhere": (["tasks", "--local_rank", "0"], "unknown flag '--local_rank'"),
}

ZERO2: dict[str, Any] = {"zero_optimization": {"stage": 2}}

# name -> (JSON, recipe changes, machine changes, message)
DEEPSPEED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "misspelt key": (
        {"gradient_cliping": 1},
        {},
        {},
        "FILE: unknown key 'gradient_cliping'; did you mean 'gradient_clipping'?",
    ),
    "misspelt ZeRO key": (
        {"zero_optimization": {"stge": 2}},
        {},
        {},
        "FILE: unknown key 'zero_optimization.stge'; did you mean 'stage'?",
    ),
    "misspelt fp16 key": (
        {"fp16": {"enable": True}},
        {},
        {},
        "FILE: unknown key 'fp16.enable'; did you mean 'enabled'?",
    ),
    "misspelt bf16 key": (
        {"bf16": {"enable": True}},
        {},
        {},
        "FILE: unknown key 'bf16.enable'; did you mean 'enabled'?",
    ),
    "misspelt autocast key": (
        {"torch_autocast": {"dtyp": "bf16"}},
        {},
        {},
        "FILE: unknown key 'torch_autocast.dtyp'; did you mean 'dtype'?",
    ),
    "misspelt data type": (
        {"data_types": {"grad_acum_dtype": "fp32"}},
        {},
        {},
        "unknown key 'data_types.grad_acum_dtype'; did you mean 'grad_accum_dtype'?",
    ),
    "misspelt offload key": (
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"devise": "cpu"}}},
        {},
        {},
        "'zero_optimization.offload_optimizer.devise'; did you mean 'device'?",
    ),
    "key of a section at the top": (
        {"reduce_bucket_size": 1},
        {},
        {},
        "unknown key 'reduce_bucket_size'; did you mean 'zero_optimization.reduce_bucket_size'?",
    ),
    "amp": (
        {"amp": {"enabled": False}},
        {},
        {},
        "FILE: amp: removed from DeepSpeed 0.19.8 with NVIDIA apex's amp; use bf16, fp16 or torch_autocast",
    ),
    "elasticity": (
        {"elasticity": {}},
        {},
        {},
        (
            "FILE: elasticity: removed from DeepSpeed 0.19.8; "
            "--resume goes on with any number of ranks without it"
        ),
    ),
    "sparse gradients": (
        {"sparse_gradients": True},
        {},
        {},
        "FILE: sparse_gradients: removed from DeepSpeed 0.19.8; remove it",
    ),
    "curriculum": (
        {"curriculum_learning": {}},
        {},
        {},
        (
            "FILE: curriculum_learning: removed from DeepSpeed 0.19.8; "
            "the order of examples is the recipe's mixture"
        ),
    ),
    "old bf16": ({"bfloat16": {}}, {}, {}, "FILE: bfloat16: the old name; write bf16"),
    "old offload": (
        {"zero_optimization": {"cpu_offload": True}},
        {},
        {},
        'zero_optimization.cpu_offload: the old form; write "offload_optimizer": {"device": "cpu"}',
    ),
    "sum of gradients": (
        {"gradient_allreduce_op": "sum"},
        {},
        {},
        "gradient_allreduce_op: losses are scaled for DeepSpeed's default, the mean over ranks",
    ),
    "prescaled gradients": (
        {"prescale_gradients": True},
        {},
        {},
        "prescale_gradients: moves where gradients are averaged",
    ),
    "unmanaged accumulation": (
        {"managed_gradient_accumulation": False},
        {},
        {},
        "managed_gradient_accumulation: the trainer tells DeepSpeed itself",
    ),
    "activation checkpointing": (
        {"activation_checkpointing": {}},
        {},
        {},
        "activation_checkpointing: set encoder.gradient_checkpointing in the recipe",
    ),
    "lossy gradients": (
        {"zero_optimization": {"stage": 3, "zero_quantized_gradients": True}},
        {},
        {},
        "zero_quantized_gradients: rounds what ranks exchange",
    ),
    "wrong kind": (
        {"zero_optimization": {"stage": "two"}},
        {},
        {},
        'FILE: zero_optimization.stage="two": must be a whole number',
    ),
    "ZeRO as a flag": (
        {"zero_optimization": True},
        {},
        {},
        "FILE: zero_optimization=true: must be a section in braces { }",
    ),
    "rounded exchange": (
        {**ZERO2, "communication_data_type": "bf16"},
        {},
        {},
        'communication_data_type="bf16": ranks exchange gradients in fp32',
    ),
    "wrong choice": (
        {"checkpoint": {"tag_validation": "fp8"}},
        {},
        {},
        'checkpoint.tag_validation="fp8": must be one of Ignore, Warn, Fail',
    ),
    "misspelt monitor key": (
        {"tensorboard": {"enabld": True}},
        {},
        {},
        "unknown key 'tensorboard.enabld'; did you mean 'enabled'?",
    ),
    "monitor of the wrong type": ({"csv_monitor": {"enabled": "yes"}}, {}, {}, "csv_monitor.enabled"),
    "autocast with ZeRO": (
        {**ZERO2, "torch_autocast": {"enabled": True}},
        {},
        {},
        "torch_autocast with ZeRO stage 2: DeepSpeed exchanges gradients in bf16 there",
    ),
    "unchecked gradients": (
        {**ZERO2, "bf16": {"enabled": True, "check_grad_overflow": False}},
        {},
        {},
        "bf16.check_grad_overflow=false: a gradient that is not finite would reach the weights",
    ),
    "universal checkpoints": (
        {"checkpoint": {"load_universal": True}},
        {},
        {},
        (
            "checkpoint.load_universal: --resume reads its own checkpoints, "
            "at any ZeRO stage and number of ranks"
        ),
    ),
    "nvme": (
        {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
        {},
        {},
        'offload_param.device="nvme": must be one of cpu, none',
    ),
    "automatic nowhere": (
        {"steps_per_print": "auto"},
        {},
        {},
        "FILE: steps_per_print 'auto': nothing fills this in; write a value or remove it",
    ),
    "no such stage": (
        {"zero_optimization": {"stage": 4}},
        {},
        {},
        "FILE: zero_optimization.stage=4: there are stages 0, 1, 2 and 3",
    ),
    "clipping": (
        {"gradient_clipping": 0.5},
        {},
        {},
        'gradient_clipping=0.5 contradicts optimizer.gradient_clipping=1 of the recipe; write "auto"',
    ),
    "batch size": (
        {"train_batch_size": 64},
        {},
        {},
        'train_batch_size=64 contradicts batch.examples_per_step=32 of the recipe; write "auto"',
    ),
    "micro-batch size": (
        {"train_micro_batch_size_per_gpu": 7},
        {},
        {},
        (
            "train_micro_batch_size_per_gpu=7: "
            "micro-batches are cut by tokens here (batch.max_tokens_per_micro_batch=8192"
        ),
    ),
    "accumulation": (
        {"gradient_accumulation_steps": 4},
        {},
        {},
        "gradient_accumulation_steps=4: the number of micro-batches follows from batch.examples_per_step",
    ),
    "optimizer type": (
        {"optimizer": {"type": "Lion"}},
        {},
        {},
        'optimizer.type="Lion" contradicts optimizer.name=adamw of the recipe',
    ),
    "optimizer lr": (
        {"optimizer": {"type": "AdamW", "params": {"lr": 3e-5}}},
        {},
        {},
        "optimizer.params.lr=3e-05 contradicts optimizer.lr=5e-05 of the recipe",
    ),
    "optimizer betas": (
        {"optimizer": {"params": {"betas": [0.8, 0.999]}}},
        {},
        {},
        "optimizer.params.betas=[0.8, 0.999] contradicts optimizer.betas=[0.9, 0.999]",
    ),
    "optimizer param": (
        {"optimizer": {"params": {"amsgrad": True}}},
        {},
        {},
        "optimizer.params.amsgrad: only lr, betas, eps, weight_decay are shared with the recipe",
    ),
    "scheduler": (
        {"scheduler": {"type": "WarmupLR"}},
        {},
        {},
        'scheduler: the learning rate follows schedule.name=linear of the recipe; write "auto" or remove it',
    ),
    "two formats": (
        {**ZERO2, "bf16": {"enabled": True}, "fp16": {"enabled": True}},
        {},
        {"fp16_supported": True},
        "bf16 and fp16 are both on: a run has one number format",
    ),
    "autocast and bf16": (
        {**ZERO2, "bf16": {"enabled": "auto"}, "torch_autocast": {"enabled": True}},
        {},
        {},
        "bf16 and torch_autocast are both on",
    ),
    "bf16 without ZeRO": (
        {"bf16": {"enabled": "auto"}},
        {},
        {},
        "bf16 with ZeRO stage 0: DeepSpeed cannot accumulate gradients in fp32 there; use torch_autocast",
    ),
    "fp16 autocast": (
        {"torch_autocast": {"enabled": True, "dtype": "float16"}},
        {},
        {},
        "torch_autocast in float16: DeepSpeed clips the scaled gradients",
    ),
    "fp16 on a CPU": (
        {**ZERO2, "fp16": {"enabled": True}},
        {},
        {},
        "fp16.enabled=true: this CPU has no fp16 arithmetic; use ds_configs/zero2_fp32.json",
    ),
    "autocast type": (
        {"torch_autocast": {"enabled": True, "dtype": "fp8"}},
        {},
        {},
        'torch_autocast.dtype="fp8": must be "bfloat16" or "float16"',
    ),
    "accumulation type": (
        {**ZERO2, "data_types": {"grad_accum_dtype": "bf16"}},
        {},
        {},
        'data_types.grad_accum_dtype="bf16": gradients accumulate in fp32',
    ),
    "weights' type": (
        {**ZERO2, "data_types": {"param_dtype": "bf16"}},
        {},
        {},
        'data_types.param_dtype="bf16": this run keeps its weights in fp32',
    ),
    "offload without ZeRO": (
        {"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}},
        {},
        {},
        "zero_optimization.offload_optimizer: needs stage 1 or higher, not 0",
    ),
    "offload of weights": (
        {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
        {},
        {},
        "zero_optimization.offload_param: needs stage 3, not 2",
    ),
    "lamb on a CPU": (
        {},
        {"name": "lamb"},
        {},
        (
            "optimizer.name=lamb of the recipe runs on CUDA only, "
            "and this machine has no CUDA device; set optimizer.name to adamw"
        ),
    ),
    "apex on a CPU": (
        {},
        {"name": "apex_adam"},
        {},
        "optimizer.name=apex_adam of the recipe runs on CUDA only, and this machine has no CUDA device",
    ),
    "lamb under ZeRO": (
        {"zero_optimization": {"stage": 3}},
        {"name": "lamb"},
        {"device_type": "cuda"},
        "zero_optimization.stage=3: optimizer.name=lamb of the recipe needs whole layers",
    ),
    "offloaded apex": (
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
        {"name": "apex_adam"},
        {"device_type": "cuda"},
        "offload_optimizer moves it to the CPU",
    ),
    "adamax forbidden": (
        {**ZERO2, "zero_allow_untested_optimizer": False},
        {"name": "adamax"},
        {},
        "zero_allow_untested_optimizer=false: optimizer.name=adamax of the recipe needs it",
    ),
    "adamax offloaded": (
        {
            "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
            "zero_force_ds_cpu_optimizer": True,
        },
        {"name": "adamax"},
        {},
        "zero_force_ds_cpu_optimizer=true: optimizer.name=adamax",
    ),
}

JSON_TEXTS = {
    "bad syntax": ('{\n "a": 1,\n}', "FILE:3: not valid JSON: "),
    "comment": ('{\n // no\n "a": 1}', "(column 2); JSON has no comments"),
    "duplicate": (
        '{"bf16": {\n\t"enabled": true,\n\t"enabled": false}}',
        "FILE:3: key 'enabled' is given twice; keep one",
    ),
    "a list": ("[1]", "FILE: a DeepSpeed configuration is a JSON object {...}, not a list"),
    "empty": ("", "FILE:1: not valid JSON: Expecting value"),
}


def problems_of(text: str, folder: Path, overrides: dict[str, str]) -> tuple[str, ...]:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path), overrides)
    return tuple(problem.replace(str(path), "FILE") for problem in caught.value.problems)


@pytest.mark.parametrize(("text", "message"), RECIPES.values(), ids=list(RECIPES))
def test_bad_recipe(tmp_path: Path, text: str, message: str) -> None:
    (problem,) = problems_of(text, tmp_path, {})
    assert message in problem


@pytest.mark.parametrize(("name", "value", "message"), FLAGS.values(), ids=list(FLAGS))
def test_bad_setting_flag(tmp_path: Path, name: str, value: str, message: str) -> None:
    problem, *_ = problems_of(BASE, tmp_path, {name: value})
    assert message in problem


@pytest.mark.parametrize(("arguments", "message"), COMMANDS.values(), ids=list(COMMANDS))
def test_bad_command_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "optimizer", "machine", "message"), DEEPSPEED.values(), ids=list(DEEPSPEED)
)
def test_bad_deepspeed_json(
    settings: dict[str, Any], optimizer: dict[str, Any], machine: dict[str, Any], message: str
) -> None:
    recipe = Recipe.model_validate(
        {"encoder": {"path": "e"}, "tasks": ["a"], "train": {"steps": 1}, "optimizer": optimizer}
    )
    given: dict[str, Any] = {
        "device_type": "cpu",
        "fast_bf16": False,
        "fp16_supported": False,
        "world_size": 2,
        **machine,
    }
    with pytest.raises(ConfigError) as caught:
        resolve_deepspeed(settings, recipe, source="FILE", **given)
    (problem,) = caught.value.problems
    assert problem.startswith("FILE: ") and message in problem


@pytest.mark.parametrize(("text", "message"), JSON_TEXTS.values(), ids=list(JSON_TEXTS))
def test_bad_json_text(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_deepspeed_json(str(path))
    (problem,) = caught.value.problems
    assert message in problem.replace(str(path), "FILE")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read this recipe: Is a directory"):
        load_recipe(str(tmp_path), {})
    with pytest.raises(
        ConfigError, match="there is no such DeepSpeed configuration; give the path of an existing file"
    ):
        load_deepspeed_json(str(tmp_path / "none.json"))
    (tmp_path / "latin.yaml").write_bytes("encoder: é".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8 text \\(byte 9\\); save the recipe as UTF-8"):
        load_recipe(str(tmp_path / "latin.yaml"), {})


def test_all_problems_of_a_json_come_together() -> None:
    recipe = Recipe.model_validate({"encoder": {"path": "e"}, "tasks": ["a"], "train": {"steps": 1}})
    settings = json.loads(
        '{"gradient_clipping": 2, "scheduler": {}, "train_batch_size": 5, "zero_optimization": {"stage": 9}}'
    )
    with pytest.raises(ConfigError) as caught:
        resolve_deepspeed(
            settings, recipe, device_type="cpu", fast_bf16=False, fp16_supported=False, world_size=1
        )
    assert len(caught.value.problems) == 4
