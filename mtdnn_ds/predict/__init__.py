"""Prediction with a trained model: texts in, every task's answer out. Trains nothing and scores nothing."""
