"""The prepared cache: texts to token ids once, kept memory-mapped; and teachers' outputs on them.

No steps, no batches.
"""
