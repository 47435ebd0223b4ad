"""What a run shows and leaves: console, metrics.jsonl, TensorBoard, FLOPs. Trains nothing."""
