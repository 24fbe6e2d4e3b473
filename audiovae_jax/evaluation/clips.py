"""Audio clips for HTML pages: players, waveforms and spectrograms as data URIs."""

import base64
import io

import numpy as np
import scipy.signal
import soundfile
from matplotlib.figure import Figure

_SPECTROGRAM = 1024  # samples per window
_WINDOW = scipy.signal.get_window("hann", _SPECTROGRAM)
_COLUMNS = 500  # of a spectrogram, approximately
_STRETCHES = 600  # segments of a waveform, each drawn from its minimum to its maximum
_FLOOR_DB = -90.0  # of a spectrogram's colours, relative to full scale
_DPI = 80


def player(audio: np.ndarray, sample_rate: int) -> str:
    """Encode audio as a data URI of 16-bit FLAC, which browsers can play.

    Args:
      audio: `[T, C]` with one or two channels. Samples beyond full scale are clipped.
      sample_rate: in Hz.
    """
    content = io.BytesIO()
    soundfile.write(content, np.clip(audio, -1, 1), sample_rate, format="FLAC", subtype="PCM_16")
    return f"data:audio/flac;base64,{base64.b64encode(content.getvalue()).decode()}"


def picture(audio: np.ndarray, sample_rate: int, peak: float) -> str:
    """Draw audio as a data URI of a PNG: a waveform above a spectrogram in dBFS.

    Args:
      audio: `[T, C]`.
      sample_rate: in Hz.
      peak: limit of the waveform's axis. Use the same one for pictures that are compared.
    """
    portrait = Portrait(len(audio), sample_rate)
    portrait.add(audio)
    return portrait.picture(peak)


class Portrait:
    """A picture of a signal that arrives in blocks; the samples are not kept.

    Args:
      length: in samples.
      sample_rate: in Hz.
    """

    def __init__(self, length: int, sample_rate: int):
        self._length, self._rate, self._done = length, sample_rate, 0
        self._stretch = max(1, -(-length // _STRETCHES))
        count = -(-length // self._stretch)
        self._low, self._high = np.full(count, np.inf), np.full(count, -np.inf)
        self._hop = max(_SPECTROGRAM // 4, length // _COLUMNS)
        self._held, self._start = np.zeros(0, np.float32), 0  # mono, from the next window's first sample on
        self._columns: list[np.ndarray] = []

    @property
    def peak(self) -> float:
        """Maximum magnitude so far."""
        return float(max(self._high.max(initial=0), -self._low.min(initial=0)))

    def add(self, block: np.ndarray):
        """Add the next `[n, C]`."""
        if not len(block):
            return
        place = (self._done + np.arange(len(block))) // self._stretch
        np.minimum.at(self._low, place, block.min(axis=1))
        np.maximum.at(self._high, place, block.max(axis=1))
        mono = block.mean(axis=1) if block.shape[1] > 1 else block[:, 0]
        missed = max(0, self._start - self._done - len(self._held))  # samples between windows that are far apart
        self._held = np.concatenate([self._held, mono[missed:]])
        self._done += len(block)
        self._transform()

    def picture(self, peak: float) -> str:
        """Draw the complete signal as a data URI of a PNG; see the function `picture`."""
        if not self._columns:
            self._held = np.pad(self._held, (0, max(0, _SPECTROGRAM - len(self._held))))
            self._transform()
        figure = Figure(figsize=(5.2, 2.6), layout="constrained")
        wave, spectrum = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
        seconds = self._length / self._rate
        wave.fill_between(np.linspace(0, seconds, len(self._low)), self._low, self._high, linewidth=0.3)
        wave.set(ylim=(-peak, peak), xlim=(0, max(seconds, 1e-3)))
        wave.tick_params(labelsize=6)
        spectrum.imshow(
            np.stack(self._columns, axis=1), origin="lower", aspect="auto", extent=(0, seconds, 0, self._rate / 2000),
            vmin=_FLOOR_DB, vmax=0, cmap="magma", interpolation="nearest",
        )  # fmt: skip
        spectrum.set_ylabel("kHz", fontsize=7)
        spectrum.tick_params(labelsize=6)
        return png(figure)

    def _transform(self):
        """Compute the spectra of all complete windows."""
        while len(self._held) >= _SPECTROGRAM:
            self._columns.append(_decibels(self._held[:_SPECTROGRAM]))
            self._held, self._start = self._held[self._hop :], self._start + self._hop


def png(figure: Figure) -> str:
    """Render a figure as a data URI of a PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DPI)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _decibels(window):
    # A sine of full scale is 0 dB.
    levels = 20 * np.log10(np.abs(np.fft.rfft(window * _WINDOW)) / (_WINDOW.sum() / 2) + 1e-10)
    # The maximum of two bins per row of the picture, so that no spectral line is lost.
    return np.maximum(levels[:-1:2], levels[1::2])
