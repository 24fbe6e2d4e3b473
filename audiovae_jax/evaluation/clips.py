"""Short stretches of audio in a page: players, waveforms and spectrograms as data URIs."""

import base64
import io

import numpy as np
import scipy.signal
import soundfile
from matplotlib.figure import Figure

_SPECTROGRAM = 1024  # samples of a window
_FLOOR_DB = -90.0  # of a spectrogram's colours, below full scale
_DPI = 80


def player(audio: np.ndarray, sample_rate: int) -> str:
    """A data URI of 16-bit FLAC, which browsers play.

    Args:
      audio: `[T, C]`, one channel or two; what is over full scale is clipped.
      sample_rate: in Hz.
    """
    content = io.BytesIO()
    soundfile.write(content, np.clip(audio, -1, 1), sample_rate, format="FLAC", subtype="PCM_16")
    return f"data:audio/flac;base64,{base64.b64encode(content.getvalue()).decode()}"


def picture(audio: np.ndarray, sample_rate: int, peak: float) -> str:
    """A data URI of a PNG: the waveform above, the spectrogram in dB of full scale below.

    Args:
      audio: `[T, C]`.
      sample_rate: in Hz.
      peak: where the waveform's axis ends, the same for pictures that are compared.
    """
    figure = Figure(figsize=(5.2, 2.6), layout="constrained")
    wave, spectrum = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    low, high = _envelope(audio)
    times = np.linspace(0, len(audio) / sample_rate, len(low))
    wave.fill_between(times, low, high, linewidth=0.3)
    wave.set(ylim=(-peak, peak), xlim=(0, max(len(audio) / sample_rate, 1e-3)))
    wave.tick_params(labelsize=6)
    levels = _decibels(audio.mean(axis=1) if audio.shape[1] > 1 else audio[:, 0])
    extent = (0, len(audio) / sample_rate, 0, sample_rate / 2000)
    spectrum.imshow(
        levels, origin="lower", aspect="auto", extent=extent, vmin=_FLOOR_DB, vmax=0, cmap="magma",
        interpolation="nearest",
    )  # fmt: skip
    spectrum.set_ylabel("kHz", fontsize=7)
    spectrum.tick_params(labelsize=6)
    return png(figure)


def png(figure: Figure) -> str:
    """A data URI of a figure."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DPI)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _envelope(audio, points=600):
    """The least and greatest sample of each of some hundred stretches."""
    size = max(1, -(-len(audio) // points))
    whole = np.pad(audio, ((0, -len(audio) % size), (0, 0)), mode="edge").reshape(-1, size * audio.shape[1])
    return whole.min(axis=1), whole.max(axis=1)


def _decibels(mono):
    mono = np.pad(mono, (0, max(0, _SPECTROGRAM - len(mono))))
    hop = max(_SPECTROGRAM // 4, len(mono) // 500)
    window = scipy.signal.get_window("hann", _SPECTROGRAM)
    frames = np.lib.stride_tricks.sliding_window_view(mono, _SPECTROGRAM)[::hop] * window
    # A sine of full scale is 0 dB.
    magnitudes = np.abs(np.fft.rfft(frames, axis=1)) / (window.sum() / 2)
    levels = 20 * np.log10(magnitudes.T + 1e-10)
    # As many rows as the picture has: the greatest of two bins, so that no line is lost.
    return np.maximum(levels[:-1:2], levels[1::2])
