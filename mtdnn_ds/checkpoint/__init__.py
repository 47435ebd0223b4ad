"""Checkpoints: shards written, found, read and restored, on any number of ranks and any ZeRO stage."""
