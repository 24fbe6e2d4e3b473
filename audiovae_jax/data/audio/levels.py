"""Peak levels of audio. Full scale is a magnitude of 1, or 0 dBFS."""

import math
from typing import NamedTuple

import numpy as np

LOUD = 8.0  # +18 dBFS; mixes of unclipped floats stay below
INTEGERS = 100.0  # +40 dBFS; such samples are integers that were stored as floats


class Level(NamedTuple):
    """The level of some audio.

    Attributes:
      peak: maximum magnitude.
      over: fraction of the samples above full scale.
    """

    peak: float
    over: float

    def __str__(self) -> str:
        return f"{20 * math.log10(self.peak):+.1f} dBFS, with {100 * self.over:.3g}% of the samples above full scale"


def far_above(level: Level) -> str:
    """Describe a level above `LOUD`, and the remedy."""
    return f"peaks at {level}; scale its samples to -1..1 (divide 16-bit values by 32768)"


class Meter:
    """The level of audio that arrives in blocks."""

    def __init__(self):
        self._peak, self._over, self._samples = 0.0, 0, 0

    def add(self, block: np.ndarray):
        """Add a block of any shape."""
        peak = max(float(block.max(initial=0)), -float(block.min(initial=0)))
        if peak > 1:
            self._over += int(np.count_nonzero(np.abs(block) > 1))
        self._peak = max(self._peak, peak)
        self._samples += block.size

    @property
    def level(self) -> Level:
        """The level of the blocks so far."""
        return Level(self._peak, self._over / max(1, self._samples))
