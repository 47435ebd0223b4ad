"""Losses as sums and counts, and the objective that alone divides."""
