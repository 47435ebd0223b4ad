"""What a finished run becomes: folders for transformers, ONNX, GLUE submissions. Trains nothing."""
