"""Training configs: `base.py` declares every key, the others override a few."""
