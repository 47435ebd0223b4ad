"""`adapt`: how much data a new task needs, beside the plain encoder (experiments/adapt.py)."""

from mtdnn_ds.experiments.adapt import run as run
