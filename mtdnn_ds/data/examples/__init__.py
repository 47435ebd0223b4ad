"""Training examples made of prepared rows: one file per family of task kinds."""

from mtdnn_ds.data.examples.base import Decoded, Examples, Gathered, TargetRows, TermOutputs
from mtdnn_ds.data.examples.table import make_examples

__all__ = ["Decoded", "Examples", "Gathered", "TargetRows", "TermOutputs", "make_examples"]
