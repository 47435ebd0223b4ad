"""What a finished run becomes: folders for transformers, ONNX and others, GLUE submissions. Trains nothing."""
