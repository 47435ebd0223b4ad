"""Doctor: what of a machine or a cluster would hurt a long run. Trains nothing (gpu.py takes a few steps)."""
