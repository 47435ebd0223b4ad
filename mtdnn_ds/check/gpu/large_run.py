"""A run of BERT-large as the trainer has it, whose steps are done one at a time, in several sizes, each timed
by part. Compares nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.check.gpu.bench import Bench
from mtdnn_ds.check.gpu.results import Row
from mtdnn_ds.check.gpu.timing import Mark, mark, milliseconds
from mtdnn_ds.check.gpu.workload import BERT_LARGE, MEAN_TOKENS, TINY, write_recipe
from mtdnn_ds.check.tiny_runs import resolved_json
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.data.batches.loader import StepBatches, TrainLoader
from mtdnn_ds.files import replace_file
from mtdnn_ds.model.compiled_layers import compile_layers
from mtdnn_ds.model.dropout.word_dropout import WordDropout
from mtdnn_ds.model.encoder import PackedEncoder
from mtdnn_ds.runs.setup import build_plan, loader_settings
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.train.engine import start_distributed
from mtdnn_ds.train.start import Run, start_run
from mtdnn_ds.train.trainer import one_step

Way = Literal["eager", "compiled"]
"""Layers as they are, or compiled by torch."""

DEEPSPEED = '{"zero_optimization": {"stage": 2}, "bf16": {"enabled": true}}'
# Of a micro-batch, over its mean tokens, since the examples of a step are drawn; few of them differ more.
ROOM, ROOM_OF_FEW = 1.125, 1.5
FEW_TOKENS = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Of a step."""

    tokens: int  # of a micro-batch, on average
    micro_batches: int = 1

    @property
    def most_tokens(self) -> int:
        """Of a micro-batch: a multiple of a power of two, to which fillers then fill one up."""
        room, unit = (ROOM_OF_FEW, 64) if self.tokens < FEW_TOKENS else (ROOM, 256)
        return int(self.tokens * room) // unit * unit

    @property
    def words(self) -> str:
        noun = "micro-batch" if self.micro_batches == 1 else "micro-batches"
        return f"{self.micro_batches} {noun} of {self.tokens:,} tokens"


@dataclass(kw_only=True, slots=True)
class PartTimes:
    """Marks around the calls of an engine, by what they do."""

    pairs: dict[str, list[tuple[Mark, Mark]]] = field(default_factory=dict)

    def ms(self, name: str) -> float:
        """Of all calls together."""
        return sum(milliseconds(begin, end) for begin, end in self.pairs.get(name, ()))


class TimedEngine:
    """An engine whose every forward, backward and step is marked before and after; else the engine itself."""

    def __init__(self, engine: Any, device: torch.device) -> None:
        self._engine, self._device = engine, device
        self.times = PartTimes()
        self.after_backward: Callable[[int], None] | None = None  # told which one of the step it was, from 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._marked("forward", self._engine, *arguments, **named)

    def backward(self, *arguments: Any, **named: Any) -> Any:
        result = self._marked("backward", self._engine.backward, *arguments, **named)
        if self.after_backward is not None:
            self.after_backward(len(self.times.pairs["backward"]))
        return result

    def step(self, *arguments: Any, **named: Any) -> Any:
        return self._marked("update", self._engine.step, *arguments, **named)

    def _marked(self, name: str, function: Any, *arguments: Any, **named: Any) -> Any:
        begin = mark(self._device)
        result = function(*arguments, **named)
        self.times.pairs.setdefault(name, []).append((begin, mark(self._device)))
        return result


@dataclass(kw_only=True, slots=True)
class LargeRun:
    """The run, with an engine that is timed."""

    run: Run
    engine: TimedEngine

    @contextmanager
    def steps(self, shape: Shape, number: int) -> Iterator[Iterator[tuple[StepBatches, Any]]]:
        """The next `number` steps of a shape, each as its batches and a function that does it."""
        run = self._shaped(shape)
        first = run.state.step + 1
        loader = TrainLoader(
            run.plan,
            run.data.train_sets,
            run.data.layout,
            run.settings,
            first_step=first,
            last_step=first + number - 1,
        )
        with loader:
            yield ((batches, lambda batches=batches: self._do(run, batches, loader)) for batches in loader)

    def _do(self, run: Run, batches: StepBatches, loader: TrainLoader) -> None:
        self.engine.times = PartTimes()
        assert not one_step(run, batches, loader), "nobody asked it to stop"

    def _shaped(self, shape: Shape) -> Run:
        """The run with steps of another size."""
        run, num_tokens = self.run, shape.tokens * shape.micro_batches
        sizes = {
            "examples_per_step": max(1, num_tokens // MEAN_TOKENS),
            "max_tokens_per_micro_batch": max(shape.most_tokens, run.recipe.encoder.max_length),
        }
        recipe = run.recipe.model_copy(update={"batch": run.recipe.batch.model_copy(update=sizes)})
        settings = loader_settings(
            recipe,
            hidden_size=run.model.net.encoder.hidden_size,
            rank=0,
            world_size=1,
            device=self.run.engine.device,
        )
        return replace(run, recipe=recipe, plan=build_plan(recipe, run.data), settings=settings)

    def mfu(self, batches: StepBatches, ms: float) -> float | None:
        """Share of the device's peak; None where the peak is not known."""
        return self.run.cost.mfu(
            tokens=batches.tokens,
            sum_squared_lengths=batches.sum_squared_lengths,
            seconds=ms / 1e3,
            num_devices=1,
        )


def large_run(bench: Bench, way: Way) -> LargeRun | None:
    """This process's run of BERT-large, started by the first part that asks for it.

    None, and a row says why, where it cannot be.
    """
    if way not in bench.kept:
        try:
            bench.kept[way] = start_large_run(bench, way)
        except ConfigError as error:
            bench.emit(Row(name=way, status="note", what="; ".join(error.problems)))
            return None
    run: LargeRun = bench.kept[way]
    return run


def start_large_run(bench: Bench, way: Way) -> LargeRun:
    """BERT-large with random weights on synthetic tasks, ZeRO 2, bf16."""
    device = start_distributed()
    folder = bench.scratch / way
    compiles = way == "compiled" and not bench.is_rehearsal
    size = TINY if bench.is_rehearsal else BERT_LARGE
    path = write_recipe(folder, size, rows=bench.sized(4000, 100))
    recipe = load_recipe(str(path), {"encoder.compile": "always" if compiles else "never"})
    replace_file(folder / "deepspeed.json", DEEPSPEED)

    # A new one: a part before this one may have ended badly with another process's run.
    output_dir = Path(tempfile.mkdtemp(prefix="run_", dir=folder))
    run = start_run(
        recipe,
        resolve_tasks(recipe),
        resolved_json(folder / "deepspeed.json", recipe),
        device=device,
        output_dir=output_dir,
        resume="none",
        evaluate_after=(),
    )
    if way == "compiled" and bench.is_rehearsal:
        _compile_on_cpu(run)
    engine = TimedEngine(run.engine, device)
    return LargeRun(run=replace(run, engine=engine), engine=engine)


def _compile_on_cpu(run: Run) -> None:
    """Layers as one graph each, with varlen's op and torch's dropout, as on a GPU; without a compiler."""
    for module in list(run.model.net.modules()):
        if isinstance(module, PackedEncoder):
            module.attention = "varlen"
        for name, child in list(module.named_children()):
            if isinstance(child, WordDropout):  # whose draws on a CPU break a graph
                setattr(module, name, nn.Dropout(child.p))
    compile_layers(run.model.net, backend="aot_eager")


def padding_share(batches: tuple[PackedBatch, ...]) -> float:
    """What the padded loop's tokens are padding of."""
    real = sum(batch.num_tokens for batch in batches)
    return 1 - real / sum(int((batch.sequence_examples >= 0).sum()) * batch.max_seqlen for batch in batches)
