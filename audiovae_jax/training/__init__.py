"""One training step: networks, losses, gradients, optimizers, and its mapping over devices."""
