"""Training examples made of prepared rows: one file for each family of task kinds. Packs nothing."""

from mtdnn_ds.data.examples.base import Decoded, Examples, Gathered, TargetRows, TermOutputs
from mtdnn_ds.data.examples.table import make_examples

__all__ = ["Decoded", "Examples", "Gathered", "TargetRows", "TermOutputs", "make_examples"]
