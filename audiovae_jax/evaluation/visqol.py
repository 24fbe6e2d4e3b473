"""ViSQOL in audio mode, which needs `visqol-python` (the extra `visqol`)."""

import numpy as np

from audiovae_jax.data.audio.stream import AudioStream
from audiovae_jax.errors import ConfigError

SAMPLE_RATE = 48000  # Hz
WINDOW_SECONDS = 10.0
_MIN_SECONDS = 1.0  # shorter audio has too few of ViSQOL's patches


class Visqol:
    """The mean opinion score that ViSQOL predicts, from 1 to 5 (Chinen et al., 2020).

    ViSQOL compares whole signals, and is designed for five to ten seconds. Longer audio is scored in windows of ten
    seconds, whose scores are averaged.

    Raises:
      ConfigError: visqol-python is not installed.
    """

    def __init__(self):
        try:
            import visqol
        except ImportError as error:
            raise ConfigError(f"--visqol needs visqol-python ({error}): pip install 'audiovae-jax[visqol]'") from error
        self._api = visqol.VisqolApi()
        self._api.create(mode="audio")

    def score(self, reference: AudioStream, estimate: AudioStream) -> float | None:
        """Score mono mixes at 48 kHz; return None if shorter than a second, or silent."""
        scores = []
        for y, x in zip(_windows(reference), _windows(estimate), strict=True):
            if len(y) >= _MIN_SECONDS * SAMPLE_RATE and y.any():
                scores.append(float(self._api.measure_from_arrays(y, x, sample_rate=SAMPLE_RATE).moslqo))
        return float(np.mean(scores)) if scores else None


def _windows(audio):
    size, held = round(WINDOW_SECONDS * SAMPLE_RATE), np.zeros(0)
    for block in audio.map(lambda block: block.mean(axis=1, keepdims=True), 1).resampled(SAMPLE_RATE).blocks():
        held = np.concatenate([held, block[:, 0].astype(np.float64)])
        while len(held) >= size:
            yield held[:size]
            held = held[size:]
    if len(held):
        yield held
