"""Prediction with a trained model: texts in, every task's answer out, in one pass of the encoder.

Trains nothing and scores nothing.
"""
