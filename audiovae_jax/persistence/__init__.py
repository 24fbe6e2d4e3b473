"""Models and runs on disk: checkpoints, saved models, training states, and the way to and from PyTorch's files."""
