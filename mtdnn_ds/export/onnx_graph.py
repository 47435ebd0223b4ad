"""Heads of a model as one ONNX graph on padded input. Not the heads on packed input (model/heads/).

onnxruntime compares it with our packed outputs. The graph holds the plain transformers encoder with its own
eager attention, once for each group of tasks that has weights of its own, and the heads behind it. Inputs
input_ids, attention_mask, token_type_ids (B, L) int64; outputs float32, named by task:

    sequences      (B, C)     classification, regression, ranking, multiple_choice: a score for each sequence
                   (B, D)     similarity: an embedding
    tokens         (B, L, C)  token_classification; span: start and end scores; masked_lm: the vocabulary's
    more terms     TASK_next_sentence (B, 2), TASK_answer_type (B, 4)

Shape legend: B sequences, L longest, D hidden, C outputs of a term.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.export.card import Card, sentence, write_card
from mtdnn_ds.export.one_task import number_in_head
from mtdnn_ds.export.opened import SourceRun
from mtdnn_ds.export.parity import FolderReport, Parity, compared, padded, together
from mtdnn_ds.export.plain import plain_config
from mtdnn_ds.export.samples import Sample
from mtdnn_ds.model.encoder import PackedEncoder
from mtdnn_ds.model.heads.linear_bank import in_scale
from mtdnn_ds.model.hf_model import quiet_transformers
from mtdnn_ds.model.sharing import merged_encoder_state
from mtdnn_ds.tasks.layout import Term

FILE = "model.onnx"
OPSET = 20
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
NO_GRAPH = (
    "its stochastic answer network (head: san) reads where each text begins and ends, "
    "which padded input does not say"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Output:
    """One output of the graph."""

    name: str
    task: str
    term: Term
    encoder: int  # which one its head reads


class PaddedHeads(nn.Module):
    """Encoder and heads of some tasks on a padded batch; the outputs are a tuple in the order of `names`."""

    def __init__(self, run: SourceRun, tasks: Sequence[str]) -> None:
        super().__init__()
        encoder = run.loaded.model.encoder
        first = encoder if isinstance(encoder, PackedEncoder) else encoder.first
        self.takes_types, self.has_types = first._accepts_token_types, first._has_token_types
        self.encoders, self.poolers = nn.ModuleList(), nn.ModuleList()
        self.banks, self.heads = nn.ParameterDict(), nn.ModuleDict()
        self.outputs: list[_Output] = []

        layout = run.loaded.layout
        groups = run.sharing.groups or {"all": tuple(tasks)}
        for members in groups.values():
            own = [task for task in members if task in tasks]
            if not own:
                continue

            self._add_encoder(run, first, own)
            for task in own:
                for index in layout.terms_of(layout.task_names.index(task)):
                    self._add_output(run, task, layout.terms[index])
        self.eval()

    @property
    def names(self) -> list[str]:
        """Names of the outputs."""
        return [output.name for output in self.outputs]

    def outputs_of(self, task: str) -> list[_Output]:
        """The outputs of one task."""
        return [output for output in self.outputs if output.task == task]

    def _add_encoder(self, run: SourceRun, first: PackedEncoder, tasks: Sequence[str]) -> None:
        """The encoder of one group of tasks, and the pooler of its sequence heads."""
        with quiet_transformers():
            model = AutoModel.from_config(plain_config(run.config), attn_implementation="eager")
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
        pooler = copy.deepcopy(first.pooler)

        state = merged_encoder_state(run.weights, run.sharing, tasks)
        for module, prefix in ((model, "model."), (pooler, "pooler.")):
            own = {name.removeprefix(prefix): each for name, each in state.items() if name.startswith(prefix)}
            module.load_state_dict(own, assign=True)
        self.encoders.append(model)
        self.poolers.append(pooler)

    def _add_output(self, run: SourceRun, task: str, term: Term) -> None:
        """A term's part of its head, behind the last encoder."""
        name = task
        if term.suffix:
            name = f"{task}_{term.suffix}"
        module = run.loaded.model.heads[term.head]
        if term.head in ("sequence", "token"):
            columns = slice(term.columns.start, term.columns.stop)
            scale = run.loaded.specs[term.task].score_scale
            weight, bias = (module.get_parameter(kind)[columns].detach() for kind in ("weight", "bias"))
            weight, bias = in_scale(weight, bias, theirs=scale, ours=None)
            for kind, own in (("weight", weight), ("bias", bias)):
                self.banks[f"{name}_{kind}"] = nn.Parameter(own, requires_grad=False)
        elif term.head == "masked_lm":
            self.heads[name] = module
        elif term.head != "embedding":
            number = number_in_head(run.loaded.layout, term)
            self.heads[name] = module.get_submodule(f"of_tasks.{number}")
        self.outputs.append(_Output(name=name, task=task, term=term, encoder=len(self.encoders) - 1))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, ...]:
        """The outputs, in the order of `names`."""
        types = token_type_ids if self.has_types else torch.zeros_like(token_type_ids)
        optional = {"token_type_ids": types} if self.takes_types else {}
        hidden, pooled = [], []
        for encoder, pooler in zip(self.encoders, self.poolers, strict=True):
            hidden_BLD = encoder(input_ids=input_ids, attention_mask=attention_mask, **optional)[0]
            hidden.append(hidden_BLD)
            pooled.append(pooler(hidden_BLD[:, :1]))

        return tuple(
            self._read(output, hidden[output.encoder], pooled[output.encoder], attention_mask)
            for output in self.outputs
        )

    def _read(self, output: _Output, hidden_BLD: Tensor, pooled_BD: Tensor, attention_mask: Tensor) -> Tensor:
        name, term = output.name, output.term
        if term.head == "embedding":
            mask_BL1 = attention_mask[:, :, None].to(hidden_BLD.dtype)
            return (hidden_BLD * mask_BL1).sum(1) / mask_BL1.sum(1)

        states = hidden_BLD if term.reads == "token" else pooled_BD
        if term.head in ("sequence", "token"):
            return functional.linear(states, self.banks[f"{name}_weight"], self.banks[f"{name}_bias"])
        return self.heads[name](states)


def write_onnx(run: SourceRun, folder: Path, samples: Mapping[str, Sample], task: str | None) -> FolderReport:
    """model.onnx, tokenizer, tasks.json and card in `folder`; the note says which tasks were left out."""
    all_specs = run.loaded.specs
    specs = [spec for spec in all_specs if spec.name == task]
    note = ""
    if task is None:
        specs = [spec for spec in all_specs if spec.head != "san"]
        left_out = [spec.name for spec in all_specs if spec.head == "san"]
        note = "; ".join(f"{name} is not in the graph: {NO_GRAPH}" for name in left_out)

    heads = PaddedHeads(run, [spec.name for spec in specs])
    _to_onnx(heads, folder / FILE)
    run.tokenizer.save_pretrained(folder)
    described = {}
    for spec in specs:
        names = [output.name for output in heads.outputs_of(spec.name)]
        described[spec.name] = {"kind": spec.kind, "labels": list(spec.labels), "outputs": names}
    (folder / "tasks.json").write_text(json.dumps(described, indent=1) + "\n")

    parity = _compare(heads, folder, {spec.name: samples[spec.name] for spec in specs})
    about = (
        f"One graph (opset {OPSET}) with inputs {', '.join(INPUTS)} of any batch size and length, "
        f"and an output for {', '.join(heads.names)}."
    )
    card = Card(
        title=f"{run.facts.run}: {task or 'all tasks'}, ONNX",
        about=about + sentence(note),
        use=f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{FILE}")\n'
        "print([output.name for output in session.get_outputs()])",
        parity=parity,
        checked_with=f"all outputs, by onnxruntime {onnxruntime.__version__} on padded input",
        specs=specs,
        pipeline=None,
        library="onnx",
    )
    write_card(folder, run, card)
    return FolderReport(name=folder.name, loads_with="onnxruntime", parity=parity, note=note)


def _to_onnx(heads: PaddedHeads, path: Path) -> None:
    """Dynamic in batch and length. The exporter's own chatter is held back; what it raises is not."""
    name = type(heads.encoders[0]).__name__
    ids = torch.ones((2, 7), dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    axes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=2)}

    quiet = logging.getLogger("torch.onnx"), logging.getLogger("onnxscript"), logging.getLogger("onnx_ir")
    levels = [logger.level for logger in quiet]
    for logger in quiet:
        logger.setLevel(logging.ERROR)

    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                heads,
                (ids, mask, torch.zeros_like(ids)),
                str(path),
                input_names=list(INPUTS),
                output_names=heads.names,
                dynamic_shapes=(axes, axes, axes),
                opset_version=OPSET,
                dynamo=True,
                external_data=_bytes(heads) > 2**30,  # a protobuf message ends at 2 GiB
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"--format onnx: torch cannot turn {name} into a graph ({first}); nothing was exported; "
            "use --format hf"
        ) from error
    finally:
        for logger, level in zip(quiet, levels, strict=True):
            logger.setLevel(level)


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _compare(heads: PaddedHeads, folder: Path, samples: Mapping[str, Sample]) -> Parity:
    """Every output for every task's own sample, one session, from the files on disk."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])
    used = {each.name for each in session.get_inputs()}

    found = []
    for task, sample in samples.items():
        inputs = padded(folder, sample.sequences())
        nothing = torch.zeros_like(inputs["input_ids"])
        fed: dict[str, Any] = {name: inputs.get(name, nothing).numpy() for name in INPUTS}
        is_token_BL = fed["attention_mask"].astype(bool)

        outputs = heads.outputs_of(task)
        names = [output.name for output in outputs]
        values = session.run(names, {name: value for name, value in fed.items() if name in used})
        for output, ours, theirs, targets in zip(
            outputs, sample.outputs, values, sample.gathered.targets, strict=True
        ):
            rows = theirs[is_token_BL] if output.term.reads == "token" else theirs
            found.append(compared(ours, rows[targets.rows], sample, f"onnx ({output.name})"))
    return together(found, list(samples.values()))
