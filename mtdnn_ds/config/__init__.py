"""Recipes, DeepSpeed JSON and what can be wrong in them. Knows no tensors and nothing of ours above it."""
