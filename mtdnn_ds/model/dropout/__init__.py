"""Dropout: raw random words on CPUs, and masks from counters that are the same on any topology."""
