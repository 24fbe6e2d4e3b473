"""Loudness in LUFS and true peak in dBTP, by ITU-R BS.1770-5."""

from collections.abc import Sequence

import numpy as np
import scipy.signal

from audiovae_jax.ops import k_weighting

BLOCK_SECONDS = 0.4
_STEPS = 4  # per block: consecutive blocks start a quarter of a block apart
_ABSOLUTE_GATE, _RELATIVE_GATE = -70.0, -10.0
_SURROUND = 10**0.15  # +1.5 dB; WAV order is L R C LFE Ls Rs
_WEIGHTS_5_1 = np.array([1.0, 1.0, 1.0, 0.0, _SURROUND, _SURROUND])
# Two phases of the standard's interpolation filter of order 48. The other two are these reversed.
_PHASE_0 = [
    0.001708984375, 0.010986328125, -0.0196533203125, 0.033203125, -0.0594482421875, 0.1373291015625,
    0.97216796875, -0.102294921875, 0.047607421875, -0.026611328125, 0.014892578125, -0.00830078125,
]  # fmt: skip
_PHASE_1 = [
    -0.0291748046875, 0.029296875, -0.0517578125, 0.089111328125, -0.16650390625, 0.465087890625,
    0.77978515625, -0.2003173828125, 0.1015625, -0.0582275390625, 0.0330810546875, -0.0189208984375,
]  # fmt: skip
_PEAK_TAPS, _PEAK_PHASES = len(_PHASE_0), 4
_PEAK_FILTER = np.array([_PHASE_0, _PHASE_1, _PHASE_1[::-1], _PHASE_0[::-1]]).T.reshape(-1)


def integrated(stretches: Sequence[np.ndarray], sample_rate: int) -> float | None:
    """Return the gated loudness in LUFS of segments `[T, C]` of one piece.

    Segments shorter than a block of 400 ms are ignored. The result is None if no block passes the gate.
    """
    powers = [np.zeros(0)]
    for stretch in stretches:
        meter = Meter(sample_rate, stretch.shape[1])
        meter.add(stretch)
        powers.append(meter.powers())
    return _gated(np.concatenate(powers))


class Meter:
    """The loudness of audio that arrives in blocks.

    Args:
      sample_rate: in Hz.
      channels: of the audio.
    """

    def __init__(self, sample_rate: int, channels: int):
        self._step = round(BLOCK_SECONDS / _STEPS * sample_rate)
        self._weighting = k_weighting.sections(sample_rate)
        self._state = np.zeros((len(self._weighting), 2, channels))
        self._channel_weights = _WEIGHTS_5_1 if channels == 6 else np.ones(channels)
        self._held, self._steps = np.zeros((0, channels)), []

    def add(self, block: np.ndarray):
        """Add the next `[n, channels]`."""
        filtered, self._state = scipy.signal.sosfilt(self._weighting, block.astype(np.float64), axis=0, zi=self._state)
        filtered = np.concatenate([self._held, filtered])
        whole = len(filtered) // self._step * self._step
        power = np.square(filtered[:whole]).reshape(-1, self._step, filtered.shape[1]).mean(axis=1)
        self._steps.append(power @ self._channel_weights)
        self._held = filtered[whole:]

    def powers(self) -> np.ndarray:
        """Return the weighted mean squares of all blocks of 400 ms, one every 100 ms."""
        steps = np.concatenate([np.zeros(0), *self._steps])
        if len(steps) < _STEPS:
            return np.zeros(0)
        return np.convolve(steps, np.full(_STEPS, 1 / _STEPS), mode="valid")

    def integrated(self) -> float | None:
        """Return the gated loudness so far in LUFS, or None if no block passes the gate."""
        return _gated(self.powers())


class TruePeak:
    """The peak magnitude of audio, including between samples.

    The audio is interpolated to four times its rate, as in annex 2 of the standard.

    Args:
      channels: of the audio.
    """

    def __init__(self, channels: int):
        self._before = np.zeros((_PEAK_TAPS - 1, channels))
        self._peak = 0.0

    def add(self, block: np.ndarray):
        """Add the next `[n, channels]`."""
        seen = np.concatenate([self._before, block])
        finer = scipy.signal.upfirdn(_PEAK_FILTER, seen, up=_PEAK_PHASES, axis=0)
        known = finer[_PEAK_PHASES * (_PEAK_TAPS - 1) : _PEAK_PHASES * len(seen)]
        self._peak = max(self._peak, float(np.abs(known).max(initial=0)))
        self._before = seen[len(seen) - _PEAK_TAPS + 1 :]

    def decibels(self) -> float | None:
        """Return the peak of the audio so far in dBTP, or None for silence.

        The audio is taken to end here, and is followed by zeros.
        """
        end = TruePeak(self._before.shape[1])
        end._before = self._before
        end.add(np.zeros_like(self._before))
        peak = max(self._peak, end._peak)
        return 20 * np.log10(peak) if peak > 0 else None


def _gated(powers):
    audible = powers[_lufs(powers) > _ABSOLUTE_GATE]
    if not audible.size:
        return None
    audible = audible[_lufs(audible) > _lufs(audible.mean()) + _RELATIVE_GATE]
    return float(_lufs(audible.mean()))


def _lufs(power):
    return -0.691 + 10 * np.log10(power + 1e-20)
