"""Training: the loop, the engine and what a run begins with. Not prediction, export or report."""
