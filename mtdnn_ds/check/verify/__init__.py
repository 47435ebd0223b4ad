"""Verify: a recipe's promises, measured on its own tasks and machine with a small encoder and a few steps."""
