"""The prepared cache: texts to token ids once, kept memory-mapped."""
