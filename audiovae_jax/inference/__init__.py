"""Use of a trained model: codec, latents, calibration, export and inspection."""
