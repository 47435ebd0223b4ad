"""Weights that a run begins with: another run's, or the head of a Hugging Face checkpoint."""
