"""Small encoders of every family as configurations, and two tasks for them. Not a test file."""

from __future__ import annotations

from transformers import (
    AlbertConfig,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
)

from mtdnn_ds.tasks.spec import TaskSpec

SIZES = dict(
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=40,
)
# ELECTRA with narrower embeddings; DeBERTa with its relative positions;
# RoBERTa with its positions after the padding id.
CONFIGS = {
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES, pad_token_id=1, type_vocab_size=1),
    "electra": ElectraConfig(**SIZES, embedding_size=16),
    "albert": AlbertConfig(**SIZES, embedding_size=16),
    "distilbert": DistilBertConfig(
        vocab_size=50, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=40
    ),
    "deberta": DebertaV2Config(
        **SIZES,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        pooler_hidden_size=32,
    ),
    "modernbert": ModernBertConfig(
        **SIZES,
        pad_token_id=0,
        cls_token_id=1,
        sep_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
        local_attention=4,
    ),
}
SPECS = (
    TaskSpec(
        name="nli", kind="classification", labels=("yes", "maybe", "no"), metrics=("accuracy",), splits={}
    ),
    TaskSpec(name="sts", kind="regression", labels=(), metrics=("pearson",), splits={}),
)
