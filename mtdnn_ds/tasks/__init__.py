"""Layer 1: what a task is (records, the built-in table, metrics). Knows no tensors, reads no data."""
