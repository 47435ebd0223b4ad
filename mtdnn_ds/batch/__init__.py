"""Packed micro-batches, the record that data builds and model and losses read."""

from mtdnn_ds.batch.packed import AttentionGroup, PackedBatch, Targets

__all__ = ["AttentionGroup", "PackedBatch", "Targets"]
