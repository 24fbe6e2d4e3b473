"""GTZAN: 30-second excerpts of ten genres, mono at 22,050 Hz.

Each genre is split 80/10/10. Set data.root.
"""

from configs import base


def override(config):
    config.data.source = "gtzan"
    # GTZAN has no content above 11 kHz. Its own rate avoids training on empty bands.
    config.data.sample_rate = 22050
    config.data.validation_crops = 20  # two of each genre


def get_config(names=""):
    return base.get_config(names, override)
