"""What the cache's tests prepare: a task of one .jsonl file, and a tokenizer of bytes. Not a test file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtdnn_ds.tasks.spec import Source, TaskSpec


def file_spec(path: Path, *, texts: tuple[str, ...] = ("text",), name: str = "mine") -> TaskSpec:
    source = Source(format="jsonl", path=str(path), text_columns=texts, label_column="label")
    return TaskSpec(
        name=name,
        kind="classification",
        labels=("no", "yes"),
        metrics=("accuracy",),
        splits={"train": source},
    )


def write_roberta_tokenizer(folder: Path, **changes: Any) -> Path:
    """A byte-level BPE of single letters with RoBERTa's template <s> a </s></s> b </s>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    options: dict[str, Any] = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    }
    options |= {"model_input_names": ["input_ids", "attention_mask"], **changes}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options).save_pretrained(folder)
    return folder
