"""Training configs: `base.py` holds every key, the others change a few."""
