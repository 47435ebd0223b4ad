"""Steps, evaluations and predictions of the real code on a fake GPU, and what each case found.

Not a test file, and the cases are in fake_gpu_cases.py. DeepSpeed computes with values, so its engine is the
one thing that is stood in for here (`_Engine`): its forward calls the model, its backward calls autograd.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
import yaml
from torch import Tensor
from transformers import BertConfig, DebertaV2Config

from helpers.fake_gpu import FakeGpu
from helpers.fake_gpu_cases import PLANTS, Case
from helpers.fake_gpu_tasks import write_tasks
from mtdnn_ds import MultiTaskModel
from mtdnn_ds.check.tiny_encoder import write_tiny_encoder
from mtdnn_ds.config.choices import ATTENTION_BACKENDS
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.batches.loader import LoaderSettings, StepBatches, TrainLoader
from mtdnn_ds.data.cache.soft_targets import RowsByExample
from mtdnn_ds.data.examples.distilled import DistilledExamples
from mtdnn_ds.losses.distillation import Distillation
from mtdnn_ds.losses.forms import build_losses
from mtdnn_ds.losses.objective import task_scales, term_coefficients
from mtdnn_ds.model.encoder import PackedEncoder
from mtdnn_ds.model.multitask import MultiTaskNet
from mtdnn_ds.predict.embedding import Pooling
from mtdnn_ds.runs.evaluate import predict
from mtdnn_ds.runs.load import LoadedRun
from mtdnn_ds.runs.setup import RunData, build_plan, loader_settings, prepare_run_data, run_model
from mtdnn_ds.tasks.layout import head_layout
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.train.distillation.teacher_outputs import mean_answer
from mtdnn_ds.train.distillation.teachers import answer_of
from mtdnn_ds.train.regularizers.regularizer import Regularizer, build_regularizer
from mtdnn_ds.train.step.optimizer_step import _forward_backward

CPU = torch.device("cpu")
TEMPERATURE = 2.0
EVALUATED_TOKENS = 2400  # of a micro-batch in evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A folder's base recipe as values, and its data, which all cases share."""

    folder: Path
    values: Mapping[str, Any]
    data: RunData


def prepare_cases(folder: Path) -> Prepared:
    """Tasks, encoders and tokens in `folder`."""
    tasks = write_tasks(folder)
    texts = [path.read_text() for path in sorted(folder.iterdir()) if path.suffix != ".py"]
    write_tiny_encoder(folder / "deberta", texts)
    write_tiny_encoder(folder / "bert", texts)
    size = BertConfig.from_pretrained(folder / "bert").vocab_size
    sizes = {"vocab_size": size, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    BertConfig(**sizes, num_hidden_layers=1).save_pretrained(folder / "bert")
    DebertaV2Config(
        **sizes,
        num_hidden_layers=1,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        pooler_hidden_size=32,
    ).save_pretrained(folder / "deberta")

    values = {
        "encoder": {"path": str(folder / "bert"), "random_init": True, "max_length": 48},
        "plugins": [str(folder / "own_kinds.py")],
        "tasks": tasks,
        "mixture": {"rates": "uniform"},
        "batch": {"examples_per_step": 2 * len(tasks), "max_tokens_per_micro_batch": 512},
        "train": {"steps": 1},
        "schedule": {"warmup": 0},
        "data": {"cache_dir": str(folder / "cache")},
    }
    recipe = _recipe(folder, values, Case())
    return Prepared(folder=folder, values=values, data=prepare_run_data(recipe, resolve_tasks(recipe)))


def _recipe(folder: Path, values: Mapping[str, Any], case: Case) -> Recipe:
    changed: dict[str, Any] = {**values, "encoder": {**values["encoder"], "path": str(folder / case.encoder)}}
    if case.tasks is not None:
        changed["tasks"] = {name: values["tasks"][name] for name in case.tasks}
        changed["batch"] = {"examples_per_step": 12, "max_tokens_per_micro_batch": 192}
    for section, settings in case.changes.items():
        changed[section] = {**changed.get(section, {}), **settings}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(changed))
    return load_recipe(str(path), {})


class _Engine:
    """DeepSpeed's engine as far as `_forward_backward` needs it."""

    def __init__(self, module: MultiTaskNet, device: torch.device) -> None:
        self.module, self.device = module, device

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self.module(*inputs, **named)

    def backward(self, loss: Tensor, **unused: Any) -> None:
        loss.backward()

    def set_gradient_accumulation_boundary(self, is_last: bool) -> None: ...

    def step(self) -> None: ...


def run_case(gpu: FakeGpu, prepared: Prepared, case: Case) -> dict[str, Any]:
    """What a case found, as JSON values: `findings` of each phase, parameters `without_gradient`, rows of the
    tables that `ran`.
    """
    recipe = _recipe(prepared.folder, prepared.values, case)
    specs = resolve_tasks(recipe)
    data = RunData(specs=specs, layout=head_layout(specs), examples=prepared.data.examples)
    net = _model(recipe, data, case)
    ran = _rows_of_tables(recipe, data, net)
    report: dict[str, Any] = {
        "findings": {},
        "error": None,
        "without_gradient": [],
        "micro_batches": 0,
        "terms_read": {},
        "ran": ran,
    }

    modules: set[str] = set()
    for module in net.modules():
        module.register_forward_hook(lambda own, inputs, outputs: modules.add(type(own).__name__))

    with gpu.running():
        net.to(gpu.device)
    phases = {"step": _step, "evaluation": _evaluate, "prediction": _predict}
    if case.planted is not None:
        phases = {"step": _step}
    for name, phase in phases.items():
        try:
            phase(gpu, recipe, data, net, case, report)
        except Exception as error:
            report["error"] = f"{name}: {type(error).__name__}: {error}\n{traceback.format_exc(limit=-8)}"
        found = Counter(gpu.take_findings())
        report["findings"][name] = [{**asdict(finding), "count": count} for finding, count in found.items()]

    ran["module"] = sorted(modules)
    return report


def _model(recipe: Recipe, data: RunData, case: Case) -> MultiTaskNet:
    """The recipe's model on the CPU, with the case's back end, and in the format that a kernel needs."""
    net = run_model(recipe, data, device=CPU, compute_dtype=torch.float32)
    if case.attention is None:
        return net

    for module in net.modules():
        if isinstance(module, PackedEncoder):
            module.attention = case.attention
    if ATTENTION_BACKENDS[case.attention].is_kernel:
        net.to(torch.bfloat16)
    return net


def _rows_of_tables(recipe: Recipe, data: RunData, net: MultiTaskNet) -> dict[str, list[str]]:
    """Which rows of which tables the case runs."""
    encoders = [module for module in net.modules() if isinstance(module, PackedEncoder)]
    return {
        "kind": sorted({spec.kind for spec in data.specs}),
        "head of a kind": sorted({f"{spec.kind} {spec.head}" for spec in data.specs}),
        "objective": sorted({f"{spec.kind} {spec.objective}" for spec in data.specs if spec.objective}),
        "form": list(data.layout.forms),
        "head": list(data.layout.heads),
        "attention": sorted({encoder.attention for encoder in encoders if encoder.packs}),
        "dropout": [recipe.train.dropout],
        "sharing": [recipe.sharing.mode],
        "regularizer": [recipe.regularizer.name],
    }


def _step(
    gpu: FakeGpu, recipe: Recipe, data: RunData, net: MultiTaskNet, case: Case, report: dict[str, Any]
) -> None:
    """The first step, as far as its gradients."""
    specs, layout = data.specs, data.layout
    distillation = None
    if case.distils:
        distillation = Distillation(temperature=TEMPERATURE, weight=0.5)
        data = _with_soft_targets(gpu, recipe, data, net, report)

    batches = _first_batches(recipe, data, net)
    scales = task_scales(
        batches.task_counts,
        "examples",
        log_spaces=[0.0] * len(specs),
        explicit=[1.0] * len(specs),
    )
    with gpu.running():
        losses = build_losses(layout, specs, gpu.device, distillation)
        regularizer = _regularizer(gpu, recipe, data, net, report)
        gpu.take_findings()  # what is built once may be waited for

        with PLANTS[case.planted]() if case.planted else nullcontext():
            _forward_backward(
                _Engine(net, gpu.device),
                batches.micro_batches,
                losses=losses,
                coefficients_M=term_coefficients(scales, batches.unit_counts, layout.task_of_term),
                regularizer=regularizer,
                step=batches.step,
            )

    parameters = [(name, parameter) for name, parameter in net.named_parameters() if parameter.requires_grad]
    report["without_gradient"] = [name for name, parameter in parameters if parameter.grad is None]
    report["micro_batches"] = len(batches.micro_batches)


def _regularizer(
    gpu: FakeGpu, recipe: Recipe, data: RunData, net: MultiTaskNet, report: dict[str, Any]
) -> Regularizer | None:
    regularizer, _ = build_regularizer(
        recipe.regularizer,
        net,
        specs=data.specs,
        layout=data.layout,
        seed=recipe.train.seed,
        compute_dtype=torch.float32,
        device=gpu.device,
    )
    if regularizer is not None and regularizer.adds_term:
        report["ran"]["divergence"] = list(regularizer.forms)
    return regularizer


def _first_batches(recipe: Recipe, data: RunData, net: MultiTaskNet) -> StepBatches:
    plan = build_plan(recipe, data)
    settings = _settings(recipe, net)
    with TrainLoader(plan, data.train_sets, data.layout, settings, first_step=1, last_step=1) as loader:
        return next(iter(loader))


def _settings(recipe: Recipe, net: MultiTaskNet, max_tokens: int | None = None) -> LoaderSettings:
    """As on a GPU, but for pinned memory, which needs one."""
    settings = loader_settings(
        recipe,
        hidden_size=net.encoder.hidden_size,
        rank=0,
        world_size=1,
        device=torch.device("cuda"),
    )
    return replace(
        settings,
        pin_memory=False,
        max_tokens_per_micro_batch=max_tokens or settings.max_tokens_per_micro_batch,
    )


def _with_soft_targets(
    gpu: FakeGpu, recipe: Recipe, data: RunData, net: MultiTaskNet, report: dict[str, Any]
) -> RunData:
    """Every task that a teacher can answer learns what this model says before its first step."""
    taught = [(task, spec) for task, spec in enumerate(data.specs) if answer_of(spec) is not None]
    wanted = [(task, "train") for task, _ in taught]
    with gpu.running():
        outputs = predict(net, wanted, data, _settings(recipe, net, EVALUATED_TOKENS), gpu.device)

    examples = dict(data.examples)
    for (_, spec), (of_task,) in zip(taught, outputs, strict=True):
        answer = RowsByExample(values=of_task.values, offsets=of_task.offsets)
        soft = mean_answer(spec, [answer], TEMPERATURE)
        own = examples[spec.name]
        examples[spec.name] = {**own, "train": DistilledExamples(own["train"], soft)}

    report["ran"]["soft target"] = sorted({str(answer_of(spec)) for _, spec in taught})
    return replace(data, examples=examples)


def _evaluate(
    gpu: FakeGpu, recipe: Recipe, data: RunData, net: MultiTaskNet, case: Case, report: dict[str, Any]
) -> None:
    """All dev splits."""
    wanted = [(task, "dev") for task, spec in enumerate(data.specs) if "dev" in spec.splits]
    with gpu.running():
        predict(net, wanted, data, _settings(recipe, net, EVALUATED_TOKENS), gpu.device)
    report["terms_read"]["evaluation"] = sum(len(data.layout.terms_of(task)) for task, _ in wanted)


def _predict(
    gpu: FakeGpu, recipe: Recipe, data: RunData, net: MultiTaskNet, case: Case, report: dict[str, Any]
) -> None:
    """Answers to texts of every form of input, and their embeddings."""
    loaded = LoadedRun(
        recipe=recipe,
        specs=data.specs,
        layout=data.layout,
        model=net,
        settings=_settings(recipe, net),
        device=gpu.device,
    )
    model = MultiTaskModel(loaded)
    model.speaks = False
    of_group = {} if recipe.sharing.mode == "hard" else {"task": data.specs[0].name}
    with gpu.running():
        model.predict(TEXTS, max_tokens=32)
        for pooling in get_args(Pooling):
            model.embed(["a red hat", "a dog"], pooling, **of_group)
    report["terms_read"]["prediction"] = len(data.layout.terms) + len(get_args(Pooling))


TEXTS = (
    "a red hat",
    ("a red hat", "the dog is red"),
    {"question": "What closed?", "context": "The old harbour was closed."},
    {"a": "which is a colour?", "c": ["dog", "red"]},
)
