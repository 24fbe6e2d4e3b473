"""Data sets: folders, manifests, shards, and the layouts of published sets."""
