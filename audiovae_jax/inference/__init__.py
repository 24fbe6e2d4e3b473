"""A trained model in use: the codec, exact chunks, latents, calibration, serving, and what a model file holds."""
