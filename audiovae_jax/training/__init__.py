"""One training step: networks, losses, gradients, optimizers, devices."""
