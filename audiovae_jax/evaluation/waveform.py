"""Waveform metrics of whole signals, accumulated over blocks."""

import numpy as np
import scipy.linalg
import scipy.signal

_TAPS = 512  # of the distortion filter that BSS Eval allows


class WaveformErrors:
    """Errors of an estimate, and their ratios to the reference, per channel.

    Args:
      channels: of both signals.
    """

    def __init__(self, channels: int):
        self._count = 0
        self._sums = np.zeros((6, channels))

    def add(self, reference: np.ndarray, estimate: np.ndarray):
        """Add the next `[n, channels]` float64 of both signals."""
        error = estimate - reference
        self._count += len(reference)
        # Sum the error itself. Small errors would be lost in differences of sums of products.
        self._sums += [
            reference.sum(axis=0), error.sum(axis=0), np.square(reference).sum(axis=0), np.square(error).sum(axis=0),
            (error * reference).sum(axis=0), np.abs(error).sum(axis=0),
        ]  # fmt: skip

    def mse(self) -> float:
        """Return the mean squared error."""
        return float(self._sums[3].mean() / self._count)

    def l1(self) -> float:
        """Return the mean absolute error."""
        return float(self._sums[5].mean() / self._count)

    def snr(self) -> float | None:
        """Return `10 log10 |y|^2 / |x - y|^2` in dB, averaged over channels by `ratio`."""
        return ratio(self._sums[2], self._sums[3])

    def si_sdr(self) -> float | None:
        """Return the scale-invariant signal-to-distortion ratio in dB.

        The signals are made zero-mean first (Le Roux et al., 2019).
        """
        mean_y, mean_e, yy, ee, ey, _ = self._sums
        yy, ee, ey = yy - mean_y**2 / self._count, ee - mean_e**2 / self._count, ey - mean_e * mean_y / self._count
        # Without its mean, a constant channel is silent up to rounding.
        heard = yy > 1e-12 * self._sums[2]
        yy, ee, ey = np.where(heard, yy, 0.0), ee, np.where(heard, ey, 0.0)
        scale = 1 + np.divide(ey, yy, out=np.zeros_like(ey), where=heard)
        residual = ee - np.divide(ey**2, yy, out=np.zeros_like(ey), where=heard)
        return ratio(scale**2 * yy, np.maximum(residual, 0.0), heard)


class BssSdr:
    """BSS Eval's SDR (Vincent et al., 2006).

    The reference, filtered by the best filter of 512 taps, counts as signal.

    Args:
      channels: of both signals. Each channel is a separate source.
    """

    def __init__(self, channels: int):
        self._before = np.zeros((_TAPS - 1, channels))
        self._energy = np.zeros(channels)
        self._auto = np.zeros((_TAPS, channels))  # sum of y[t] y[t - k]
        self._cross = np.zeros((_TAPS, channels))  # sum of x[t] y[t - k]

    def add(self, reference: np.ndarray, estimate: np.ndarray):
        """Add the next `[n, channels]` float64 of both signals."""
        seen = np.concatenate([self._before, reference])
        for sums, signal in ((self._auto, reference), (self._cross, estimate)):
            lags = scipy.signal.fftconvolve(seen, signal[::-1], mode="valid", axes=0)
            sums += lags[::-1]
        self._energy += np.square(estimate).sum(axis=0)
        self._before = seen[len(seen) - _TAPS + 1 :]

    def sdr(self) -> float | None:
        """Return the SDR in dB, averaged over channels by `ratio`."""
        explained = [
            self._explained(auto, cross, energy)
            for auto, cross, energy in zip(self._auto.T, self._cross.T, self._energy, strict=True)
        ]
        explained = np.array(explained)
        return ratio(explained, np.maximum(self._energy - explained, 0.0), self._auto[0] > 0)

    @staticmethod
    def _explained(auto, cross, energy):
        """Return the energy of the estimate's projection on the shifted references."""
        if not auto[0] or not energy:
            return 0.0
        try:
            explained = cross @ np.linalg.solve(scipy.linalg.toeplitz(auto), cross)
        except np.linalg.LinAlgError:
            explained = np.inf
        if not 0 <= explained <= energy:  # empty frequency bands make the equations singular
            explained = cross @ np.linalg.lstsq(scipy.linalg.toeplitz(auto), cross, rcond=1e-10)[0]
        return min(max(explained, 0.0), energy)


def ratio(signal: np.ndarray, noise: np.ndarray, heard: np.ndarray | None = None) -> float | None:
    """Return `10 log10 signal / noise`, averaged over channels that are not silent.

    It is infinite if the estimate is exact, and None if every channel of the reference is silent.
    """
    heard = signal > 0 if heard is None else heard
    if not heard.any():
        return None
    with np.errstate(divide="ignore"):
        return float(np.mean(10 * np.log10(signal[heard] / noise[heard])))
