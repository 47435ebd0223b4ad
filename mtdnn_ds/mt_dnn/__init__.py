"""Coming from mt-dnn: its task definitions and data files in our terms."""
