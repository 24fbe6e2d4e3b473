"""The audio VAE: its layers, how far it looks, and where a window of a signal lies."""
