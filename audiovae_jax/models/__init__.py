"""The audio VAE: its layers, its receptive field, and windows of long signals."""
