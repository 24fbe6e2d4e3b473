"""Weights of the PyTorch system: how they are named and laid out."""
