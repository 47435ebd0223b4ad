"""A finished run, or several, as one HTML page that needs no network, and the pictures of experiments.

Trains nothing.
"""
