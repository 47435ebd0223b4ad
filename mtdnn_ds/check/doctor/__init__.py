"""Doctor: what of a machine or a cluster would hurt a long run. Trains nothing (check/gpu/ does)."""
