"""Checked rows: what each kind of task reads from a source, every bad row found before training.

Cuts no tokens.
"""
