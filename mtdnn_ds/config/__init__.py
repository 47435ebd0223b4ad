"""Layer 0: recipes, DeepSpeed JSON and the errors that both can raise. Knows no tensors and nothing of ours
above it."""
