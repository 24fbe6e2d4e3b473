"""Distances of waveforms, summed block by block: what comes out is the number of the whole signals."""

import numpy as np
import scipy.linalg
import scipy.signal

_TAPS = 512  # of the distortion that BSS Eval forgives


class WaveformErrors:
    """Error ratios of an estimate, channel by channel.

    Args:
      channels: of both signals.
    """

    def __init__(self, channels: int):
        self._count = 0
        self._sums = np.zeros((6, channels))

    def add(self, reference: np.ndarray, estimate: np.ndarray):
        """Take in the next `[n, channels]` of both, float64."""
        error = estimate - reference
        self._count += len(reference)
        # The error itself is summed, and not the products of both: differences of those lose small errors.
        self._sums += [
            reference.sum(axis=0), error.sum(axis=0), np.square(reference).sum(axis=0), np.square(error).sum(axis=0),
            (error * reference).sum(axis=0), np.abs(error).sum(axis=0),
        ]  # fmt: skip

    def mse(self) -> float:
        """The mean squared error."""
        return float(self._sums[3].mean() / self._count)

    def l1(self) -> float:
        """The mean absolute error."""
        return float(self._sums[5].mean() / self._count)

    def snr(self) -> float | None:
        """`10 log10 |y|^2 / |x - y|^2` in dB: see `ratio` for the mean over channels."""
        return ratio(self._sums[2], self._sums[3])

    def si_sdr(self) -> float | None:
        """Scale-invariant signal-to-distortion ratio in dB, of signals made zero-mean (Le Roux et al., 2019)."""
        mean_y, mean_e, yy, ee, ey, _ = self._sums
        yy, ee, ey = yy - mean_y**2 / self._count, ee - mean_e**2 / self._count, ey - mean_e * mean_y / self._count
        # A channel that is constant is silent up to rounding.
        heard = yy > 1e-12 * self._sums[2]
        yy, ee, ey = np.where(heard, yy, 0.0), ee, np.where(heard, ey, 0.0)
        scale = 1 + np.divide(ey, yy, out=np.zeros_like(ey), where=heard)
        residual = ee - np.divide(ey**2, yy, out=np.zeros_like(ey), where=heard)
        return ratio(scale**2 * yy, np.maximum(residual, 0.0), heard)


class BssSdr:
    """BSS Eval's SDR: what a filter of 512 taps makes of the reference counts as signal (Vincent et al., 2006).

    Args:
      channels: of both signals; each is a source of its own.
    """

    def __init__(self, channels: int):
        self._before = np.zeros((_TAPS - 1, channels))
        self._energy = np.zeros(channels)
        self._auto = np.zeros((_TAPS, channels))  # sum of y[t] y[t - k]
        self._cross = np.zeros((_TAPS, channels))  # sum of x[t] y[t - k]

    def add(self, reference: np.ndarray, estimate: np.ndarray):
        """Take in the next `[n, channels]` of both, float64."""
        seen = np.concatenate([self._before, reference])
        for sums, signal in ((self._auto, reference), (self._cross, estimate)):
            lags = scipy.signal.fftconvolve(seen, signal[::-1], mode="valid", axes=0)
            sums += lags[::-1]
        self._energy += np.square(estimate).sum(axis=0)
        self._before = seen[len(seen) - _TAPS + 1 :]

    def sdr(self) -> float | None:
        """In dB, the mean over channels, see `ratio`."""
        explained = [
            self._explained(auto, cross, energy)
            for auto, cross, energy in zip(self._auto.T, self._cross.T, self._energy, strict=True)
        ]
        explained = np.array(explained)
        return ratio(explained, np.maximum(self._energy - explained, 0.0), self._auto[0] > 0)

    @staticmethod
    def _explained(auto, cross, energy):
        """The energy of the estimate's projection on the shifted references."""
        if not auto[0] or not energy:
            return 0.0
        try:
            explained = cross @ np.linalg.solve(scipy.linalg.toeplitz(auto), cross)
        except np.linalg.LinAlgError:
            explained = np.inf
        if not 0 <= explained <= energy:  # bands without any sound make the equations singular
            explained = cross @ np.linalg.lstsq(scipy.linalg.toeplitz(auto), cross, rcond=1e-10)[0]
        return min(max(explained, 0.0), energy)


def ratio(signal: np.ndarray, noise: np.ndarray, heard: np.ndarray | None = None) -> float | None:
    """`10 log10 signal / noise`, averaged over the channels whose reference is not silent.

    Infinite where the estimate is exact; None where every channel is silent.
    """
    heard = signal > 0 if heard is None else heard
    if not heard.any():
        return None
    with np.errstate(divide="ignore"):
        return float(np.mean(10 * np.log10(signal[heard] / noise[heard])))
