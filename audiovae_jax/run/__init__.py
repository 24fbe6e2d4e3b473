"""A whole training run: start, loop, validation, checkpoints, locks."""
