"""The picture of a signal of any length: waveform and mel-axis spectrogram."""

import base64
import io
import math

import numpy as np
from matplotlib import image

from audiovae_jax.data.audio.stream import AudioStream
from audiovae_jax.html.picture import mel_levels

FLOOR_DB = -90.0  # of the spectrogram's colors, below full scale
_WINDOW = 2048  # samples per spectrum
_COLUMNS = 800  # approximate number of spectrogram columns
_STRETCHES = 800  # segments of the waveform, each drawn from its lowest to its highest sample
_HEIGHT = 500  # height of the waveform above and below its center, in units of the path
_TICKS = (0, 500, 1000, 2000, 4000, 8000, 16000, 32000, 64000)  # Hz


class Portrait:
    """A waveform and a spectrogram, computed blockwise without keeping the audio.

    Args:
      source: gives the signal's rate, length and channels. Its blocks are passed to `add`.
    """

    def __init__(self, source: AudioStream):
        self.sample_rate, self.seconds = source.sample_rate, source.length / source.sample_rate
        self._stretch = max(1, -(-source.length // _STRETCHES))
        count = -(-source.length // self._stretch)
        self._low, self._high = np.full(count, np.inf), np.full(count, -np.inf)
        self._held = np.zeros((0, source.channels), np.float32)
        self._done, self._next, self._hop = 0, 0, max(_WINDOW // 4, source.length // _COLUMNS)
        self._columns: list[np.ndarray] = []

    @property
    def peak(self) -> float:
        """The largest absolute sample so far."""
        return float(max(self._high.max(initial=0), -self._low.min(initial=0)))

    def add(self, block: np.ndarray):
        """Add the next block, `[n, C]`."""
        if not len(block):
            return
        stretch = (self._done + np.arange(len(block))) // self._stretch
        np.minimum.at(self._low, stretch, block.min(axis=1))
        np.maximum.at(self._high, stretch, block.max(axis=1))
        held = np.concatenate([self._held, block])
        self._done += len(block)
        first = self._done - len(held)
        while self._next + _WINDOW <= self._done:
            self._add_column(held[self._next - first :][:_WINDOW])
            self._next += self._hop
        self._held = held[max(0, self._next - first) :]

    def wave(self, peak: float) -> str:
        """Return the waveform as an SVG path.

        It is one unit wide per segment and 500 units high for `peak`.
        """
        scale = _HEIGHT / max(peak, 1e-9)
        top = [f"{i} {-round(high * scale)}" for i, high in enumerate(self._high)]
        bottom = [f"{i} {-round(low * scale) + 1}" for i, low in enumerate(self._low)]
        return f"M{'L'.join([*top, *reversed(bottom)])}Z"

    def spectrogram(self) -> str:
        """Return a data URI of a PNG without axes: power averaged over channels, in dBFS."""
        if not self._columns:  # shorter than a window
            self._add_column(self._held)
        content = io.BytesIO()
        levels = np.stack(self._columns, axis=1)
        image.imsave(
            content, levels, format="png", origin="lower", cmap="magma", vmin=FLOOR_DB, vmax=0,
            metadata={"Software": None},
        )  # fmt: skip
        return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"

    def frequencies(self) -> list[tuple[int, float]]:
        """Return `(Hz, height)` of the mel axis's ticks, with heights in 0..1."""
        top = math.log1p(self.sample_rate / 2 / 700)
        ticks = [(hertz, math.log1p(hertz / 700) / top) for hertz in _TICKS]
        return [(hertz, height) for hertz, height in ticks if height <= 0.97]

    def _add_column(self, window):
        self._columns.append(mel_levels(window, self.sample_rate)[0].astype(np.float32))
