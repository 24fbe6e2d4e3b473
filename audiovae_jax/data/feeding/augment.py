"""Changes to a crop that leave it music: gain, polarity, channels swapped. A crop's own generator decides."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Augment:
    """What is done to training crops; the defaults do nothing.

    Attributes:
      gain_db: the range of a random gain, in dB.
      polarity_probability: of the sign being turned.
      swap_probability: of the channels being turned round.
    """

    gain_db: tuple[float, float] = (0.0, 0.0)
    polarity_probability: float = 0.0
    swap_probability: float = 0.0

    def __call__(self, audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """`[T, C]` to `[T, C]`; each change has its own number, so that one does not move another's."""
        gain, polarity, swap = rng.random(3)
        low, high = self.gain_db
        if low or high:
            audio = audio * np.float32(10 ** ((low + (high - low) * gain) / 20))
        if polarity < self.polarity_probability:
            audio = -audio
        if swap < self.swap_probability:
            audio = audio[:, ::-1]
        return np.ascontiguousarray(audio, np.float32)
