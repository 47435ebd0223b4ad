"""A folder of the encoder that sentence-transformers loads: mean pooling over all tokens, as our own embeddings. Compares it with the run.

The layout is sentence-transformers' own: modules.json names a Transformer (the folder itself) and a Pooling (1_Pooling/config.json). It
is written without that package.

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

from mtdnn_ds.export.card import write_card
from mtdnn_ds.export.opened import Opened
from mtdnn_ds.export.parity import Parity, compared, load_plain, padded
from mtdnn_ds.export.plain import ENCODER, plain_config, plain_model
from mtdnn_ds.export.samples import Sample, hidden_outputs
from mtdnn_ds.model.hf_model import quiet_transformers

LAYOUT_OF = "5.0.0"
"""Version of sentence-transformers whose layout this is; 6.2.0 has been seen to load it."""


def write_sentence_transformers(
    opened: Opened, folder: Path, samples: Mapping[str, Sample], task: str | None
) -> tuple[Parity | None, str]:
    """Encoder, tokenizer and the descriptions of pooling in `folder`; `task`: whose encoder, where they are not shared. Returns parity and a note."""
    loaded = opened.loaded
    with quiet_transformers():
        model = plain_model(
            None,
            opened.weights,
            loaded.model,
            loaded.layout,
            opened.sharing,
            plain_config(opened.config),
            of=task,
        )
        assert not isinstance(model, str), model
        model.save_pretrained(folder)
        opened.tokenizer.save_pretrained(folder)
    max_length, width = loaded.recipe.encoder.max_length, loaded.model.encoder.hidden_size
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    versions = {
        "sentence_transformers": LAYOUT_OF,
        "transformers": transformers.__version__,
        "pytorch": torch.__version__,
    }
    is_cosine = {
        "__version__": versions,
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    (folder / "1_Pooling").mkdir()
    _write(folder / "modules.json", modules)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    _write(folder / "config_sentence_transformers.json", is_cosine)
    _write(folder / "1_Pooling" / "config.json", pooling(width))
    name = task or next(iter(samples))
    sample = samples[name]
    if task is None and opened.sharing.mode != "hard":
        parity, note = (
            None,
            f"with {opened.sharing.mode} sharing no task runs through the shared encoder alone; --task gives that of a task",
        )
    else:
        hidden = hidden_outputs(sample, loaded, loaded.layout.task_names.index(name))
        ours = np.stack([tokens.mean(axis=0) for tokens in hidden])
        parity, note = compared(ours, mean_pooled(folder, sample), sample, folder.name), ""
    write_card(
        folder,
        opened,
        title=f"{opened.facts.run}: sentence embeddings",
        about=f"The encoder{f' of {task}' if task else ''} with mean pooling, {width} numbers a text, for texts of up to {max_length} tokens.",
        use='from sentence_transformers import SentenceTransformer\n\nembeddings = SentenceTransformer("sentence-transformers").encode(["a text"])',
        parity=parity,
        checked_with="mean-pooled embeddings, the folder loaded from disk by transformers and pooled as 1_Pooling/config.json says"
        if parity
        else f"Not compared: {note}.",
        specs=[spec for spec in loaded.specs if spec.kind == "similarity"],
        pipeline="sentence-similarity",
        library="sentence-transformers",
    )
    return parity, note


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
