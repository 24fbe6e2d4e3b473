"""Metrics of the stereo image: mid and side, correlation, panning, phase."""

import numpy as np

from audiovae_jax.evaluation.spectral import Resolution, Spectra
from audiovae_jax.evaluation.waveform import WaveformErrors

# As in EAR_VAE's public evaluation script.
PHASE_RESOLUTIONS: tuple[Resolution, ...] = tuple((n, n // 4, n) for n in (4096, 2048, 1024, 512))
PAN_RESOLUTION: Resolution = (2048, 512, 2048)
_MIN_WEIGHT = 1e-6  # product of a bin's two magnitudes up to which it is ignored


class StereoField:
    """Mid and side SNR, and stereo correlation, of two stereo signals."""

    def __init__(self):
        self._mid, self._side = WaveformErrors(1), WaveformErrors(1)
        self._count = 0
        self._means, self._products = np.zeros((2, 2)), np.zeros((2, 2, 2))

    def add(self, reference: np.ndarray, estimate: np.ndarray):
        """Add the next `[n, 2]` float64 of both signals."""
        for errors, sign in ((self._mid, 1), (self._side, -1)):
            errors.add(*((a[:, :1] + sign * a[:, 1:]) / 2 for a in (reference, estimate)))
        self._count += len(reference)
        for i, a in enumerate((reference, estimate)):
            self._means[i] += a.sum(axis=0)
            self._products[i] += a.T @ a

    def result(self) -> dict[str, float | None]:
        """Return the columns by name.

        Ratios are None if their reference is silent, correlations if a channel is constant.
        """
        reference, estimate = (self._correlation(i) for i in (0, 1))
        known = None not in (reference, estimate)
        return {
            "mid_snr_db": self._mid.snr(),
            "side_snr_db": self._side.snr(),
            "stereo_correlation": reference,
            "stereo_correlation_error": abs(estimate - reference) if known else None,
        }

    def _correlation(self, i):
        """Return Pearson's correlation of left and right, or None."""
        covariance = self._products[i] - np.outer(self._means[i], self._means[i]) / self._count
        spread = covariance[0, 0] * covariance[1, 1]
        return float(covariance[0, 1] / np.sqrt(spread)) if spread > 0 else None


class PanError:
    """The mean absolute difference of bins' panning index (Avendano, 2003).

    The mean is weighted by the reference's power. The index is 0 in the centre, -1 at the left and 1 at the right.
    """

    def __init__(self):
        self._sum = self._weight = 0.0

    def add(self, spectra: Spectra):
        """Add frames of two channels."""
        indices = [
            _panning(a, power) for a, power in zip((spectra.reference, spectra.estimate), spectra.powers, strict=True)
        ]
        weight = spectra.powers[0].sum(axis=0)
        self._sum += (weight * np.abs(indices[0] - indices[1])).sum(dtype=np.float64)
        self._weight += weight.sum(dtype=np.float64)

    def result(self) -> float | None:
        """Return the error, from 0 to 2, or None for silence."""
        return float(self._sum / self._weight) if self._weight else None


class PhaseCoherence:
    """Phase coherence at one resolution, as in EAR_VAE's public evaluation script.

    For each frame it is the magnitude of the weighted sum of `exp(i d)` over bins, divided by the sum of weights.
    Frames are averaged by their weights. For a channel, `d` is the phase of the estimate minus that of the reference.
    Between channels, `d` is the difference of both signals' phase differences between left and right. The best value
    is 1. Any constant `d` also gives 1.
    """

    def __init__(self):
        self._sums = np.zeros((3, 2))  # left, right, between; numerator and denominator

    def add(self, spectra: Spectra):
        """Add frames of one or two channels."""
        # In float32, products of the near-silence that MP3 decodes to are subnormal, and their directions NaN.
        y, x = (each.astype(np.complex128) for each in (spectra.reference, spectra.estimate))
        for i in range(len(y)):
            self._add(i, x[i] * y[i].conj(), np.abs(x[i]) * np.abs(y[i]))
        if len(y) == 2:
            between = (x[0] * x[1].conj()) * (y[0] * y[1].conj()).conj()
            self._add(2, between, np.abs(x[0]) * np.abs(x[1]))

    def channels(self) -> float | None:
        """Return the average over channels, or None for silence."""
        known = [numerator / weight for numerator, weight in self._sums[:2] if weight]
        return float(np.mean(known)) if known else None

    def between(self) -> float | None:
        """Return the coherence between left and right, or None for silence or mono."""
        numerator, weight = self._sums[2]
        return float(numerator / weight) if weight else None

    def _add(self, i, product, weight):
        weight = np.where(weight > _MIN_WEIGHT, weight, 0)
        size = np.abs(product)
        direction = np.divide(product, size, out=np.ones_like(product), where=size > 0)
        self._sums[i] += np.abs((weight * direction).sum(axis=1)).sum(dtype=np.float64), weight.sum(dtype=np.float64)


def _panning(spectrum, power):
    total = power.sum(axis=0)
    similarity = 2 * np.abs(spectrum[0] * spectrum[1].conj())
    similarity = np.divide(similarity, total, out=np.ones_like(total), where=total > 0)
    return (1 - similarity) * np.sign(power[1] - power[0])
