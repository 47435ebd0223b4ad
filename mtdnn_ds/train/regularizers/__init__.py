"""SMART, FreeLB, R-Drop and the penalty of shared encoders."""
