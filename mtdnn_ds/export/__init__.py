"""What a finished run becomes: Hugging Face folders, ONNX, GLUE submissions, a folder of the whole model.

Trains nothing.
"""
