"""`compare`: a recipe's tasks alone, in sequence and together (experiments/compare.py)."""

from mtdnn_ds.experiments.compare import run as run
