"""mtdnn_ds: one encoder, many tasks, trained exactly under DeepSpeed. Imports nothing heavy."""

__version__ = "0.1.0"
