"""Micro-batches: a step's examples packed over ranks, gathered into tensors, and made ahead of the step."""
