"""All heads of a model, or one, as one ONNX graph on padded input, compared with our packed outputs by onnxruntime.

The graph holds the plain transformers encoder with its own eager attention, once for each group of tasks that has weights of its own, and
the heads behind it. Inputs input_ids, attention_mask, token_type_ids (B, L) int64; outputs float32, named by task:

    sequences      (B, C)     classification, regression, ranking, multiple_choice: a score for each sequence; a similarity's embedding (B, D)
    tokens         (B, L, C)  token_classification; span: start and end scores; masked_lm: scores of the vocabulary
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
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.export.card import write_card
from mtdnn_ds.export.opened import Opened
from mtdnn_ds.export.parity import Parity, compared, padded
from mtdnn_ds.export.plain import plain_config
from mtdnn_ds.export.run import NO_GRAPH
from mtdnn_ds.export.samples import Sample
from mtdnn_ds.model.encoder import PackedEncoder
from mtdnn_ds.model.hf_model import quiet_transformers
from mtdnn_ds.model.sharing import merged_encoder_state
from mtdnn_ds.tasks.layout import Term

FILE = "model.onnx"
OPSET = 20
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class PaddedHeads(nn.Module):
    """Encoder and heads of some tasks on a padded batch; the outputs are a tuple in the order of `names`."""

    def __init__(self, opened: Opened, tasks: Sequence[str]) -> None:
        super().__init__()
        loaded, layout = opened.loaded, opened.loaded.layout
        groups = opened.sharing.groups or {"all": tuple(tasks)}
        members = [
            own for own in ([task for task in group if task in tasks] for group in groups.values()) if own
        ]
        net = loaded.model.encoder
        first = net if isinstance(net, PackedEncoder) else net.first
        self.takes_types, self.has_types = first._accepts_token_types, first._has_token_types
        self.encoders, self.poolers = nn.ModuleList(), nn.ModuleList()
        for own in members:
            state = merged_encoder_state(opened.weights, opened.sharing, own)
            with quiet_transformers():
                model = AutoModel.from_config(plain_config(opened.config), attn_implementation="eager")
            if getattr(model, "pooler", None) is not None:
                model.pooler = None
            pooler = copy.deepcopy(first.pooler)
            for module, prefix in ((model, "model."), (pooler, "pooler.")):
                module.load_state_dict(
                    {
                        name.removeprefix(prefix): each
                        for name, each in state.items()
                        if name.startswith(prefix)
                    },
                    assign=True,
                )
            self.encoders.append(model)
            self.poolers.append(pooler)
        self.readers: list[
            tuple[int, Term, int]
        ] = []  # encoder, term, number of the term among those of its head
        self.names: list[str] = []
        self.banks = nn.ParameterDict()
        self.heads = nn.ModuleDict()
        for group, own in enumerate(members):
            for task in own:
                for index in layout.terms_of(layout.task_names.index(task)):
                    term = layout.terms[index]
                    number = [other.task for other in layout.terms if other.head == term.head].index(
                        term.task
                    )
                    name = f"{task}_{term.suffix}" if term.suffix else task
                    self.names.append(name)
                    self.readers.append((group, term, number))
                    self._take_head(opened, name, term, number)
        self.eval()

    def _take_head(self, opened: Opened, name: str, term: Term, number: int) -> None:
        module = opened.loaded.model.heads[term.head]
        if term.head in ("sequence", "token"):
            columns = slice(term.columns.start, term.columns.stop)
            self.banks[f"{name}_weight"] = nn.Parameter(module.weight[columns].detach(), requires_grad=False)  # type: ignore[index]
            self.banks[f"{name}_bias"] = nn.Parameter(module.bias[columns].detach(), requires_grad=False)  # type: ignore[index]
        elif term.head == "masked_lm":
            self.heads[name] = module
        elif term.head != "embedding":
            self.heads[name] = module.get_submodule(f"of_tasks.{number}")

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, ...]:
        types = token_type_ids if self.has_types else torch.zeros_like(token_type_ids)
        optional = {"token_type_ids": types} if self.takes_types else {}
        hidden, pooled = [], []
        for encoder, pooler in zip(self.encoders, self.poolers, strict=True):
            hidden_BLD = encoder(input_ids=input_ids, attention_mask=attention_mask, **optional)[0]
            hidden.append(hidden_BLD)
            pooled.append(pooler(hidden_BLD[:, :1]))
        return tuple(
            self._read(name, term, hidden[group], pooled[group], attention_mask)
            for name, (group, term, _) in zip(self.names, self.readers, strict=True)
        )

    def _read(
        self, name: str, term: Term, hidden_BLD: Tensor, pooled_BD: Tensor, attention_mask: Tensor
    ) -> Tensor:
        if term.head == "embedding":
            mask_BL1 = attention_mask[:, :, None].to(hidden_BLD.dtype)
            return (hidden_BLD * mask_BL1).sum(1) / mask_BL1.sum(1)
        states = hidden_BLD if term.reads == "token" else pooled_BD
        if term.head in ("sequence", "token"):
            return functional.linear(states, self.banks[f"{name}_weight"], self.banks[f"{name}_bias"])
        return self.heads[name](states)


def write_onnx(
    opened: Opened, folder: Path, samples: Mapping[str, Sample], task: str | None
) -> tuple[Parity, str]:
    """model.onnx, tokenizer, tasks.json and card in `folder`; the parity of all outputs, and what was left out."""
    loaded = opened.loaded
    left_out = [spec.name for spec in loaded.specs if spec.head == "san"]
    tasks = [spec.name for spec in loaded.specs if spec.name not in left_out] if task is None else [task]
    heads = PaddedHeads(opened, tasks)
    _to_onnx(heads, folder / FILE)
    opened.tokenizer.save_pretrained(folder)
    specs = [spec for spec in loaded.specs if spec.name in tasks]
    described = {
        spec.name: {"kind": spec.kind, "labels": list(spec.labels), "outputs": _outputs_of(heads, spec.name)}
        for spec in specs
    }
    (folder / "tasks.json").write_text(json.dumps(described, indent=1) + "\n")
    parity = _compare(heads, folder, {name: samples[name] for name in tasks})
    note = "; ".join(f"{name} is not in the graph: {NO_GRAPH}" for name in left_out) if task is None else ""
    write_card(
        folder,
        opened,
        title=f"{opened.facts.run}: {'all tasks' if task is None else task}, ONNX",
        about=f"One graph (opset {OPSET}) with inputs {', '.join(INPUTS)} of any batch size and length, and an output for {', '.join(heads.names)}."
        + (f" {note[:1].upper()}{note[1:]}." if note else ""),
        use=f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{FILE}")\nprint([output.name for output in session.get_outputs()])',
        parity=parity,
        checked_with=f"all outputs, by onnxruntime {_version()} on padded input",
        specs=specs,
        pipeline=None,
        library="onnx",
    )
    return parity, note


def _outputs_of(heads: PaddedHeads, task: str) -> list[str]:
    tasks = {name: name.removesuffix(f"_{term.suffix}") if term.suffix else name for name, (_, term, _) in zip(heads.names, heads.readers, strict=True)}  # fmt: skip
    return [name for name, own in tasks.items() if own == task]


def _to_onnx(heads: PaddedHeads, path: Path) -> None:
    """Dynamic in batch and length. The exporter's own chatter is held back; what it raises is not."""
    ids = torch.ones((2, 7), dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    axes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=2)}
    quiet = logging.getLogger("torch.onnx"), logging.getLogger("onnxscript"), logging.getLogger("onnx_ir")
    levels = [logger.level for logger in quiet]
    for logger in quiet:
        logger.setLevel(logging.ERROR)
    name = type(heads.encoders[0]).__name__
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
            f"--format onnx: torch cannot turn {name} into a graph ({first}); nothing was exported; use --format hf"
        ) from error
    finally:
        for logger, level in zip(quiet, levels, strict=True):
            logger.setLevel(level)


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def _compare(heads: PaddedHeads, folder: Path, samples: Mapping[str, Sample]) -> Parity:
    """Every output for every task's own sample, one session, from the files on disk."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])
    found, used = [], {each.name for each in session.get_inputs()}
    for task, sample in samples.items():
        inputs = padded(folder, sample.sequences())
        fed: dict[str, Any] = {
            name: inputs.get(name, torch.zeros_like(inputs["input_ids"])).numpy() for name in INPUTS
        }
        names = _outputs_of(heads, task)
        outputs = session.run(names, {name: value for name, value in fed.items() if name in used})
        terms = [term for name, (_, term, _) in zip(heads.names, heads.readers, strict=True) if name in names]
        for name, term, ours, theirs, targets in zip(
            names, terms, sample.outputs, outputs, sample.gathered.targets, strict=True
        ):
            rows = theirs[fed["attention_mask"].astype(bool)] if term.reads == "token" else theirs
            found.append(compared(ours, rows[targets.rows], sample, f"onnx ({name})"))
    sources = ", ".join(dict.fromkeys(each.source for each in found))
    rows = sum(sample.num_sequences for sample in samples.values())
    return Parity(difference=float(np.max([each.difference for each in found])), rows=rows, source=sources)
