"""The step plan: which examples of which tasks make up each optimizer step. Pure NumPy; knows no tokens."""
