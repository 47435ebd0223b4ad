"""From task names to micro-batches. No model, no loss. Each room imports only those before it.

sources    raw rows of files, saved datasets, the hub or our generator
rows       rows checked: texts that are texts, labels that are classes or numbers
cache      rows as token ids on disk, memory-mapped; teachers' outputs beside them
plan       which examples of which tasks make up each step (imports none of the others)
examples   what a kind of task makes of prepared rows: sequences and targets
batches    a step's examples packed over ranks, as tensors

ragged.py is the index arithmetic that cache, examples and batches share.
"""
