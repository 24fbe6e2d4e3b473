"""Checkpoints, saved models, training states, and conversion of PyTorch files."""
