"""doctor --gpu: what the CUDA path computes and how fast, on one GPU, in parts that cannot end each other.

What the parts are and how long they may take is in parts.py, how they are run in run.py; one file for each of
what they look at.
"""
