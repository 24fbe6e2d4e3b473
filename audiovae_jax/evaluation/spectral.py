"""Spectral distances as defined by other libraries, over signals in blocks.

Their scales differ, so they are not comparable.

- auraloss adds spectral convergence to the distance of natural logarithms, and averages over resolutions.
- audiotools adds the distance of decimal logarithms of power to that of magnitudes, and sums over resolutions.
"""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import scipy.fft
import scipy.signal

from audiovae_jax.ops import signal

Resolution = tuple[int, int, int]  # n_fft, hop length and window length in samples


@dataclasses.dataclass(frozen=True)
class Spectra:
    """Consecutive frames of both signals, each `[channels, frames, bins]`, complex64."""

    reference: np.ndarray
    estimate: np.ndarray

    @functools.cached_property
    def powers(self) -> tuple[np.ndarray, np.ndarray]:
        """Power spectra of the reference and the estimate."""
        return tuple(np.square(a.real) + np.square(a.imag) for a in (self.reference, self.estimate))


class Frames:
    """The short-time Fourier transform of signals that arrive in blocks.

    Frames are centred, with reflect padding and a Hann window. The transform is not normalised.

    Args:
      resolution: of the transform.
    """

    def __init__(self, resolution: Resolution):
        n_fft, self._hop, win_length = resolution
        self._n_fft, self._half = n_fft, n_fft // 2
        self._window = signal.hann_window(win_length, n_fft)
        self._held, self._is_begun = None, False

    def add(self, block: np.ndarray) -> np.ndarray | None:
        """Add the next `[signals, n]` float32, and return the spectra that it completes.

        They are `[signals, frames, bins]`, or None if there are none.
        """
        self._held = block if self._held is None else np.concatenate([self._held, block], axis=1)
        if not self._is_begun:
            if self._held.shape[1] <= self._half:
                return None
            self._held = np.concatenate([self._held[:, self._half : 0 : -1], self._held], axis=1)
            self._is_begun = True
        return self._complete()

    def end(self) -> np.ndarray | None:
        """Return the last spectra, or None if the signals are too short to be reflected."""
        if not self._is_begun:
            return None
        reflected = self._held[:, -2 : -self._half - 2 : -1]
        self._held = np.concatenate([self._held, reflected], axis=1)
        return self._complete()

    def _complete(self):
        count = (self._held.shape[1] - self._n_fft) // self._hop + 1
        if count < 1:
            return None
        windows = np.lib.stride_tricks.sliding_window_view(self._held, self._n_fft, axis=1)
        spectra = scipy.fft.rfft(windows[:, : count * self._hop : self._hop] * self._window, axis=-1)
        self._held = self._held[:, count * self._hop :]
        return spectra


class _Sums:
    """The sums of one definition over the frames of one resolution."""

    def __init__(self, definition, filters):
        self._definition, self._filters = definition, filters
        self._sums, self._count = 0.0, 0

    def add(self, spectra: Spectra):
        magnitudes = [np.sqrt(np.maximum(power, self._definition.floor)) for power in spectra.powers]
        if self._filters is not None:
            magnitudes = [a @ self._filters for a in magnitudes]
        sums, count = self._definition.sums(*magnitudes)
        self._sums = self._sums + np.array(sums)
        self._count += count

    def result(self) -> float | None:
        return None if not self._count else float(self._definition.finish(self._sums, self._count))


@dataclasses.dataclass(frozen=True)
class Definition:
    """The definition of a distance between two magnitude spectrograms.

    Attributes:
      sums: maps `(reference, estimate)`, `[channels, frames, bins]` each, to `(sums, number of elements)`.
      finish: maps the total of both to the distance at a resolution.
      combine: maps the distances at all resolutions to one distance.
      floor: minimum of the power.
    """

    sums: Callable
    finish: Callable
    combine: Callable[[Sequence[float]], float]
    floor: float = 0.0


def _auraloss_sums(y, x):
    with np.errstate(invalid="ignore"):  # an empty mel band has no logarithm, which makes the distance NaN
        logs = np.log(x / y)
    return (_total(np.square(y - x)), _total(np.square(y)), _total(np.abs(logs))), y.size


def _auraloss_finish(sums, count):
    return np.sqrt(sums[0] / sums[1]) + sums[2] / count


def _audiotools_sums(y, x):
    logs = 2 * np.log10(np.maximum(x, 1e-5) / np.maximum(y, 1e-5))
    return (_total(np.abs(logs)) + _total(np.abs(x - y)),), y.size


def _log1p_sums(y, x):
    return (_total(np.abs(np.log((1 + x) / (1 + y)))),), y.size


def _decibel_sums(y, x):
    squares = np.square(20 * np.log10(x / y))
    return (_total(np.sqrt(squares.mean(axis=-1))),), squares[..., 0].size


def _share(sums, count):
    return sums[0] / count


# auraloss 0.4: one spectral convergence over all channels, with power floored at 1e-8.
AURALOSS = Definition(_auraloss_sums, _auraloss_finish, np.mean, floor=1e-8)
# audiotools 0.7 and the loss module of DAC: magnitudes floored at 1e-5 within the logarithm.
AUDIOTOOLS = Definition(_audiotools_sums, _share, np.sum)
# |log(1 + X) - log(1 + Y)|, which needs no floor and gives silence little weight.
LOG1P = Definition(_log1p_sums, _share, np.mean)
# The root-mean-square difference in dB over a frame's bins, averaged over frames (Gray and Markel, 1976).
LOG_SPECTRAL = Definition(_decibel_sums, _share, np.mean, floor=1e-8)


@dataclasses.dataclass(frozen=True)
class Distance:
    """A distance over several resolutions.

    Attributes:
      name: of its column.
      definition: one of the definitions above.
      resolutions: of the transforms.
      n_mels: number of mel bands at each resolution; None to use the FFT's bins.
      a_weighted: whether both signals are A-weighted first, as by `ops.signal.a_weight` and auraloss.
    """

    name: str
    definition: Definition
    resolutions: tuple[Resolution, ...]
    n_mels: tuple[int, ...] | None = None
    a_weighted: bool = False


class Analysis:
    """Computes several distances and other measures of spectra.

    Those of the same resolution and weighting share a transform.

    Args:
      distances: to compute.
      measures: pairs `(resolution, measure)`, where a measure has a method `add(spectra)`.
      sample_rate: in Hz.
      pool: threads that compute the transforms.
    """

    def __init__(
        self,
        distances: Sequence[Distance],
        measures: Sequence[tuple[Resolution, object]],
        sample_rate: int,
        pool: concurrent.futures.Executor,
    ):
        self._pool = pool
        self._weighting = _AWeighting(sample_rate) if any(d.a_weighted for d in distances) else None
        self._listeners, self._sums = {}, {}
        for distance in distances:
            for i, resolution in enumerate(distance.resolutions):
                filters = None
                if distance.n_mels is not None:
                    filters = signal.mel_filterbank(sample_rate, resolution[0], distance.n_mels[i])
                sums = _Sums(distance.definition, filters)
                self._sums.setdefault(distance, []).append(sums)
                self._listen(resolution, sums, distance.a_weighted)
        for resolution, measure in measures:
            self._listen(resolution, measure, a_weighted=False)

    def add(self, reference: np.ndarray, estimate: np.ndarray):
        """Add the next `[n, channels]` float32 of both signals."""
        both = np.ascontiguousarray(np.concatenate([reference, estimate], axis=1).T)
        self._spread(both, None if self._weighting is None else self._weighting.add(both))

    def end(self) -> dict[str, float | None]:
        """Return the distances by name.

        A distance is None if the signals are too short, or a mel band is empty.
        """
        if self._weighting is not None:
            self._spread(None, self._weighting.end())
        self._spread(None, None, is_end=True)
        results = {}
        for distance, sums in self._sums.items():
            values = [of_resolution.result() for of_resolution in sums]
            known = all(value is not None and np.isfinite(value) for value in values)
            results[distance.name] = float(distance.definition.combine(values)) if known else None
        return results

    def _listen(self, resolution, listener, a_weighted):
        key = (resolution, a_weighted)
        if key not in self._listeners:
            self._listeners[key] = (Frames(resolution), [])
        self._listeners[key][1].append(listener)

    def _spread(self, plain, weighted, is_end=False):
        def work(item):
            (_, a_weighted), (frames, listeners) = item
            block = weighted if a_weighted else plain
            if not is_end and (block is None or not block.size):
                return
            spectra = frames.end() if is_end else frames.add(block)
            if spectra is None:
                return
            channels = len(spectra) // 2
            spectra = Spectra(spectra[:channels], spectra[channels:])
            for listener in listeners:
                listener.add(spectra)

        list(self._pool.map(work, self._listeners.items()))


class _AWeighting:
    """The A-weighting filter for blocks, with its delay compensated."""

    def __init__(self, sample_rate):
        self._taps = signal.a_weighting_fir(sample_rate).astype(np.float64)
        self._late = len(self._taps) // 2
        self._before = None

    def add(self, block):
        if self._before is None:
            self._before = np.zeros((len(block), len(self._taps) - 1), block.dtype)
        seen = np.concatenate([self._before, block], axis=1)
        filtered = scipy.signal.oaconvolve(seen, self._taps[None], mode="valid", axes=1).astype(np.float32)
        self._before = seen[:, 1 - len(self._taps) :]
        dropped = min(self._late, filtered.shape[1])
        self._late -= dropped
        return filtered[:, dropped:]

    def end(self):
        if self._before is None:
            return None
        return self.add(np.zeros((len(self._before), len(self._taps) // 2), np.float32))


def _total(values):
    return values.sum(dtype=np.float64)
