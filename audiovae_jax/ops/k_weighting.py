"""The K weighting of ITU-R BS.1770-5, in numpy."""

import numpy as np


def sections(sample_rate: int) -> np.ndarray:
    """Return the second-order sections `[2, 6]` for a sample rate in Hz.

    They have the form of scipy's `sosfilt`. The first is a shelf that models the head, the second a high-pass. The
    standard gives coefficients for 48 kHz. Here the analog filters behind them are discretised for any rate.
    """
    gain, quality = 10 ** (3.999843853973347 / 20), 0.7071752369554196
    k = np.tan(np.pi * 1681.974450955533 / sample_rate)
    middle = gain**0.4996667741545416
    shelf = [
        gain + middle * k / quality + k * k, 2 * (k * k - gain), gain - middle * k / quality + k * k,
        1 + k / quality + k * k, 2 * (k * k - 1), 1 - k / quality + k * k,
    ]  # fmt: skip
    quality = 0.5003270373238773
    k = np.tan(np.pi * 38.13547087602444 / sample_rate)
    # The numerator is the standard's, which does not have unit gain.
    high_pass = [1, -2, 1, 1, 2 * (k * k - 1) / (1 + k / quality + k * k), (1 - k / quality + k * k)]
    high_pass[5] /= 1 + k / quality + k * k
    return np.array([np.array(shelf) / shelf[3], high_pass])
