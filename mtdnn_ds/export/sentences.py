"""A folder of the encoder that sentence-transformers loads, with mean pooling. Written without that package.

It is compared with our own embeddings, the mean over all tokens. The layout is sentence-transformers' own:
modules.json names a Transformer (the folder itself) and a Pooling (1_Pooling/config.json).

Shape legend: S sequences, D hidden.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from mtdnn_ds.export.card import Card, write_card
from mtdnn_ds.export.opened import SourceRun
from mtdnn_ds.export.parity import FolderReport, Parity, compared, load_plain, padded
from mtdnn_ds.export.plain import ENCODER, plain_config, plain_model
from mtdnn_ds.export.samples import Sample, hidden_outputs
from mtdnn_ds.model.hf_model import quiet_transformers

LAYOUT_OF = "5.0.0"
"""Version of sentence-transformers whose layout this is; 6.2.0 has been seen to load it."""


def write_sentence_transformers(
    run: SourceRun, folder: Path, samples: Mapping[str, Sample], task: str | None
) -> FolderReport:
    """Encoder, tokenizer and the descriptions of pooling in `folder`.

    `task`: whose encoder, where they are not shared.
    """
    _write_encoder(run, folder, task)
    _write_descriptions(run, folder)

    parity, note = _compare(run, folder, samples, task)
    checked = (
        "mean-pooled embeddings, the folder loaded from disk by transformers and pooled as "
        "1_Pooling/config.json says"
    )
    encoder = "encoder" if task is None else f"encoder of {task}"
    max_length, width = run.loaded.recipe.encoder.max_length, run.loaded.model.encoder.hidden_size
    card = Card(
        title=f"{run.facts.run}: sentence embeddings",
        about=f"The {encoder} with mean pooling, {width} numbers a text, "
        f"for texts of up to {max_length} tokens.",
        use="from sentence_transformers import SentenceTransformer\n\n"
        'embeddings = SentenceTransformer("sentence-transformers").encode(["a text"])',
        parity=parity,
        checked_with=f"Not compared: {note}." if parity is None else checked,
        specs=[spec for spec in run.loaded.specs if spec.kind == "similarity"],
        pipeline="sentence-similarity",
        library="sentence-transformers",
    )
    write_card(folder, run, card)
    return FolderReport(name=folder.name, loads_with="SentenceTransformer", parity=parity, note=note)


def _write_encoder(run: SourceRun, folder: Path, task: str | None) -> None:
    loaded = run.loaded
    with quiet_transformers():
        model = plain_model(
            None,
            run.weights,
            loaded.model,
            loaded.layout,
            run.sharing,
            plain_config(run.config),
            of=task,
        )
        assert not isinstance(model, str), model
        model.save_pretrained(folder)
        run.tokenizer.save_pretrained(folder)


def _write_descriptions(run: SourceRun, folder: Path) -> None:
    """The files that sentence-transformers reads beside those of transformers."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    versions = {
        "sentence_transformers": LAYOUT_OF,
        "transformers": transformers.__version__,
        "pytorch": torch.__version__,
    }
    similarity = {
        "__version__": versions,
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    limits = {"max_seq_length": run.loaded.recipe.encoder.max_length, "do_lower_case": False}

    (folder / "1_Pooling").mkdir()
    _write(folder / "modules.json", modules)
    _write(folder / "sentence_bert_config.json", limits)
    _write(folder / "config_sentence_transformers.json", similarity)
    _write(folder / "1_Pooling" / "config.json", pooling(run.loaded.model.encoder.hidden_size))


def _compare(
    run: SourceRun, folder: Path, samples: Mapping[str, Sample], task: str | None
) -> tuple[Parity | None, str]:
    """The parity of mean-pooled embeddings of one task's sample; or none, and why."""
    if task is None and run.sharing.mode != "hard":
        return None, (
            f"with {run.sharing.mode} sharing no task runs through the shared encoder alone; "
            "--task gives that of a task"
        )

    name = task or next(iter(samples))
    sample, number = samples[name], run.loaded.layout.task_names.index(name)
    ours = [tokens.mean(axis=0) for tokens in hidden_outputs(sample, run.loaded, number)]
    return compared(np.stack(ours), mean_pooled(folder, sample), sample, folder.name), ""


def pooling(width: int) -> dict[str, Any]:
    """1_Pooling/config.json for the mean over all tokens."""
    others = ("cls_token", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    return {
        "word_embedding_dimension": width,
        **{f"pooling_mode_{name}": False for name in others},
        "pooling_mode_mean_tokens": True,
        "include_prompt": True,
    }


def mean_pooled(folder: Path, sample: Sample) -> np.ndarray:
    """(S, D) from the folder's own files, on padded input."""
    inputs = padded(folder, sample.sequences())
    with torch.no_grad():
        hidden = load_plain(folder, ENCODER)(**inputs).last_hidden_state
    mask = inputs["attention_mask"][:, :, None].to(hidden.dtype)
    return np.asarray(((hidden * mask).sum(1) / mask.sum(1)).numpy())


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
