"""Arithmetic on arrays: convolutions, activations, STFTs and mel filters."""
