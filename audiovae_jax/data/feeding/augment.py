"""Augmentation of crops: random gain, polarity and channel order."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random changes to training crops, disabled by default.

    Attributes:
      gain_db: range of a random gain, in dB.
      polarity_probability: probability of flipping the sign.
      swap_probability: probability of reversing the order of channels.
    """

    gain_db: tuple[float, float] = (0.0, 0.0)
    polarity_probability: float = 0.0
    swap_probability: float = 0.0

    def __call__(self, audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Augment a crop `[T, C]`.

        Each change has its own random number, so that enabling one does not affect the others.
        """
        gain, polarity, swap = rng.random(3)
        low, high = self.gain_db
        if low or high:
            audio = audio * np.float32(10 ** ((low + (high - low) * gain) / 20))
        if polarity < self.polarity_probability:
            audio = -audio
        if swap < self.swap_probability:
            audio = audio[:, ::-1]
        return np.ascontiguousarray(audio, np.float32)
