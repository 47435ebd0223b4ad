"""Micro-batches: a step's examples packed over ranks, gathered, and made ahead of the step that reads them."""
