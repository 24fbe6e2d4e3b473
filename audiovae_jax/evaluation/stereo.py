"""How well the stereo image is kept: mid and side, correlation, panning, phase between channels."""

import numpy as np

from audiovae_jax.evaluation.spectral import Resolution, Spectra
from audiovae_jax.evaluation.waveform import WaveformErrors

# Those of the public evaluation script of EAR_VAE.
PHASE_RESOLUTIONS: tuple[Resolution, ...] = tuple((n, n // 4, n) for n in (4096, 2048, 1024, 512))
PAN_RESOLUTION: Resolution = (2048, 512, 2048)
_LEAST_WEIGHT = 1e-6  # of a bin, in its two magnitudes' product


class StereoField:
    """Mid, side and correlation of two stereo signals."""

    def __init__(self):
        self._mid, self._side = WaveformErrors(1), WaveformErrors(1)
        self._count = 0
        self._means, self._products = np.zeros((2, 2)), np.zeros((2, 2, 2))

    def add(self, reference: np.ndarray, estimate: np.ndarray):
        """Take in the next `[n, 2]` of both, float64."""
        for errors, sign in ((self._mid, 1), (self._side, -1)):
            errors.add(*((a[:, :1] + sign * a[:, 1:]) / 2 for a in (reference, estimate)))
        self._count += len(reference)
        for i, a in enumerate((reference, estimate)):
            self._means[i] += a.sum(axis=0)
            self._products[i] += a.T @ a

    def result(self) -> dict[str, float | None]:
        """The columns by name; a ratio is None where its reference is silent."""
        reference, estimate = (self._correlation(i) for i in (0, 1))
        known = None not in (reference, estimate)
        return {
            "mid_snr_db": self._mid.snr(),
            "side_snr_db": self._side.snr(),
            "stereo_correlation": reference,
            "stereo_correlation_error": abs(estimate - reference) if known else None,
        }

    def _correlation(self, i):
        """Pearson's, of left and right."""
        covariance = self._products[i] - np.outer(self._means[i], self._means[i]) / self._count
        spread = covariance[0, 0] * covariance[1, 1]
        return float(covariance[0, 1] / np.sqrt(spread)) if spread > 0 else None


class PanError:
    """The mean difference of the panning index of bins (Avendano, 2003), weighted by the reference's power.

    The index is 0 for a bin in the middle, -1 and 1 for one on the left and right alone.
    """

    def __init__(self):
        self._sum = self._weight = 0.0

    def add(self, spectra: Spectra):
        """Take in frames of two channels."""
        indices = [
            _panning(a, power) for a, power in zip((spectra.reference, spectra.estimate), spectra.powers, strict=True)
        ]
        weight = spectra.powers[0].sum(axis=0)
        self._sum += (weight * np.abs(indices[0] - indices[1])).sum(dtype=np.float64)
        self._weight += weight.sum(dtype=np.float64)

    def result(self) -> float | None:
        """From 0 to 2; None of silence."""
        return float(self._sum / self._weight) if self._weight else None


class PhaseCoherence:
    """Phase coherence at a resolution, as the public evaluation script of EAR_VAE defines it.

    In each frame the length of the weighted sum of `exp(i d)` over bins, in relation to that of the weights, and then
    the mean over frames by their weights. `d` is the estimate's difference in phase from the reference in a channel,
    or the difference of both signals' phases between left and right. 1 is the best, and a constant `d` counts as that.
    """

    def __init__(self):
        self._sums = np.zeros((3, 2))  # left, right, between; numerator and denominator

    def add(self, spectra: Spectra):
        """Take in frames of one channel or two."""
        y, x = spectra.reference, spectra.estimate
        for i in range(len(y)):
            self._add(i, x[i] * y[i].conj(), np.abs(x[i]) * np.abs(y[i]))
        if len(y) == 2:
            between = (x[0] * x[1].conj()) * (y[0] * y[1].conj()).conj()
            self._add(2, between, np.abs(x[0]) * np.abs(x[1]))

    def channels(self) -> float | None:
        """The mean over channels; None of silence."""
        known = [numerator / weight for numerator, weight in self._sums[:2] if weight]
        return float(np.mean(known)) if known else None

    def between(self) -> float | None:
        """Between left and right; None of silence, or mono."""
        numerator, weight = self._sums[2]
        return float(numerator / weight) if weight else None

    def _add(self, i, product, weight):
        weight = np.where(weight > _LEAST_WEIGHT, weight, 0)
        size = np.abs(product)
        direction = np.divide(product, size, out=np.ones_like(product), where=size > 0)
        self._sums[i] += np.abs((weight * direction).sum(axis=1)).sum(dtype=np.float64), weight.sum(dtype=np.float64)


def _panning(spectrum, power):
    total = power.sum(axis=0)
    similarity = 2 * np.abs(spectrum[0] * spectrum[1].conj())
    similarity = np.divide(similarity, total, out=np.ones_like(total), where=total > 0)
    return (1 - similarity) * np.sign(power[1] - power[0])
