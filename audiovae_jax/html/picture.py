"""Spectrograms of samples: a PNG that compares two, and an SVG of one."""

import io

import numpy as np

from audiovae_jax.html import drawing

_N_FFT = 2048  # window length in samples
_BANDS = 192  # number of rows, of equal width in mel
_RANGE_DB = 90.0  # dynamic range below the original's maximum
_MAX_DIFFERENCE_DB = 30.0
_MAX_COLUMNS = 360  # approximate number of columns in an SVG
_TICKS = (100, 500, 1000, 2000, 4000, 8000, 16000, 32000)  # Hz


def png(original: np.ndarray, reconstruction: np.ndarray, sample_rate: int, *, title: str = "") -> bytes:
    """Return a PNG of the original, the reconstruction and their level difference.

    The three panels have a mel axis and show levels in dB.

    Args:
      original, reconstruction: `[T, C]`.
      sample_rate: in Hz.
      title: title of the figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Fixed positions are faster than a computed layout.
    figure = Figure(figsize=(9, 9))
    canvas = FigureCanvasAgg(figure)
    places = {"left": 0.07, "right": 0.92, "bottom": 0.05, "top": 0.92, "wspace": 0.03, "hspace": 0.1}
    rows = figure.subplots(3, 2, width_ratios=(50, 1), gridspec_kw=places)
    levels = [mel_levels(audio, sample_rate) for audio in (original, reconstruction)]
    top = levels[0].max()
    # Levels below the colour range count as equal: such a difference is inaudible.
    heard = [np.maximum(level, top - _RANGE_DB) for level in levels]
    of_levels = {"vmin": top - _RANGE_DB, "vmax": top, "cmap": "magma"}
    of_difference = {"vmin": -_MAX_DIFFERENCE_DB, "vmax": _MAX_DIFFERENCE_DB, "cmap": "RdBu_r"}
    seconds = len(original) / sample_rate
    for (axis, bar), (name, values, colours) in zip(
        rows,
        (
            ("original", heard[0], of_levels),
            ("reconstruction", heard[1], of_levels),
            ("difference: red where the reconstruction is louder, blue where it is softer", heard[1] - heard[0],
             of_difference),
        ),
        strict=True,
    ):  # fmt: skip
        shown = _show(axis, values, seconds, sample_rate, **colours)
        figure.colorbar(shown, cax=bar, label="dB")
        axis.set_title(name, fontsize=10)
        axis.tick_params(labelbottom=bar is rows[-1][1])
    axis.set_xlabel("seconds")
    figure.suptitle(title, fontsize=10, parse_math=False)  # a file name may contain "$"
    file = io.BytesIO()
    canvas.print_png(file, pil_kwargs={"compress_level": 1})  # the highest level is 9; the default takes twice as long
    return file.getvalue()


def spectrogram(audio: np.ndarray, original: np.ndarray, sample_rate: int, description: str) -> str:
    """Return a spectrogram over a mel axis as inline SVG.

    Args:
      audio: `[T, C]`.
      original: `[N, C]`; its maximum level gets the brightest colour, so that spectrograms can be compared.
      sample_rate: in Hz.
      description: text for screen readers.
    """
    top = mel_levels(original, sample_rate).max()
    levels = mel_levels(audio, sample_rate)
    levels = levels[:: max(1, len(levels) // _MAX_COLUMNS)]

    def plot(axis):
        colours = {"vmin": top - _RANGE_DB, "vmax": top, "cmap": "magma", "interpolation": "none"}
        _show(axis, levels, len(audio) / sample_rate, sample_rate, **colours)
        axis.grid(False)
        axis.set_xlabel("seconds")

    return drawing.draw(plot, description)


def mel_levels(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Compute levels in dB in bands of equal mel width, averaged over channels.

    Args:
      audio: `[T, C]`; audio shorter than one window is padded with zeros.
      sample_rate: in Hz.

    Returns:
      `[frames, bands]`. A band narrower than the resolution of the FFT has the power of the bin that it lies in.
    """
    window = np.hanning(_N_FFT + 1)[:-1]
    audio = np.pad(audio, ((0, max(0, _N_FFT - len(audio))), (0, 0)))
    frames = np.lib.stride_tricks.sliding_window_view(audio, _N_FFT, axis=0)[:: _N_FFT // 4]  # [frames, C, n]
    power = np.square(np.abs(np.fft.rfft(frames * window))).mean(axis=1) / np.square(window.sum() / 2)
    # The power of a band is the difference of the integral over frequency between the band's ends.
    integral = np.pad(np.cumsum(power, axis=1), ((0, 0), (1, 0)))
    ends = _hertz(np.linspace(0, _mel(sample_rate / 2), _BANDS + 1)) / (sample_rate / _N_FFT) + 0.5
    ends = np.minimum(ends, integral.shape[1] - 1)
    below = np.floor(ends).astype(int)
    above = np.minimum(below + 1, integral.shape[1] - 1)
    at_ends = integral[:, below] + (ends - below) * (integral[:, above] - integral[:, below])
    return 10 * np.log10(np.maximum(np.diff(at_ends) / np.maximum(np.diff(ends), 1e-9), 1e-14))


def _show(axis, levels, seconds, sample_rate, **options):
    extent = (0, seconds, 0, float(_mel(sample_rate / 2)))
    ticks = [hertz for hertz in _TICKS if hertz <= sample_rate / 2]
    axis.set_yticks(_mel(np.array(ticks)), [f"{hertz / 1000:g}" for hertz in ticks])
    axis.set_ylabel("kHz (mel)")
    return axis.imshow(levels.T, origin="lower", aspect="auto", extent=extent, **options)


def _mel(hertz):
    """Convert Hz to mel (O'Shaughnessy, "Speech Communication", 1987)."""
    return 2595 * np.log10(1 + np.asarray(hertz) / 700)


def _hertz(mel):
    return 700 * (10 ** (mel / 2595) - 1)
