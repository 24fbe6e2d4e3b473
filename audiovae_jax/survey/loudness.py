"""Loudness as people hear it: LUFS, the level that ITU-R BS.1770-4 defines."""

from collections.abc import Sequence

import numpy as np
import scipy.signal

BLOCK_SECONDS = 0.4
_STEPS = 4  # of a block to the next, a quarter of it apart
_ABSOLUTE_GATE, _RELATIVE_GATE = -70.0, -10.0
_SURROUND = 10**0.15  # +1.5 dB; WAV order is L R C LFE Ls Rs
_WEIGHTS_5_1 = np.array([1.0, 1.0, 1.0, 0.0, _SURROUND, _SURROUND])


def integrated(stretches: Sequence[np.ndarray], sample_rate: int) -> float | None:
    """The gated loudness in LUFS of `[T, C]` stretches of one piece; None where all of it is under the gate.

    A stretch that is shorter than a block of 400 ms is not heard.
    """
    powers = np.concatenate([np.zeros(0), *(_block_powers(stretch, sample_rate) for stretch in stretches)])
    heard = powers[_lufs(powers) > _ABSOLUTE_GATE]
    if not heard.size:
        return None
    heard = heard[_lufs(heard) > _lufs(heard.mean()) + _RELATIVE_GATE]
    return float(_lufs(heard.mean()))


def weighting(sample_rate: int) -> np.ndarray:
    """`[2, 6]` second-order sections of the K weighting: a shelf for the head, then a high pass.

    The standard gives them for 48 kHz; these are the analog filters behind its numbers, at any rate.
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
    # Its numerator is as the standard has it, not of unit gain.
    high_pass = [1, -2, 1, 1, 2 * (k * k - 1) / (1 + k / quality + k * k), (1 - k / quality + k * k)]
    high_pass[5] /= 1 + k / quality + k * k
    return np.array([np.array(shelf) / shelf[3], high_pass])


def _block_powers(audio, sample_rate):
    step = round(BLOCK_SECONDS / _STEPS * sample_rate)
    steps = len(audio) // step
    if steps < _STEPS:
        return np.zeros(0)
    filtered = scipy.signal.sosfilt(weighting(sample_rate), audio[: steps * step].astype(np.float64), axis=0)
    power = np.square(filtered).reshape(steps, step, -1).mean(axis=1)
    power = power @ (_WEIGHTS_5_1 if audio.shape[1] == 6 else np.ones(audio.shape[1]))
    return np.convolve(power, np.full(_STEPS, 1 / _STEPS), mode="valid")


def _lufs(power):
    return -0.691 + 10 * np.log10(power + 1e-20)
