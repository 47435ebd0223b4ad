"""Layer 2: losses as sums and counts, and the objective that alone divides."""
