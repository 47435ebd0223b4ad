"""What a task is (records, the built-in table, metrics). Knows no tensors, reads no data."""
