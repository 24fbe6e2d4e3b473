"""Migrate the PyTorch system's Hydra configs to a config of this library."""
