"""Where files' spectra end: what was compressed or recorded narrowly teaches a model to leave the top empty."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from audiovae_jax.data.audio import deadline
from audiovae_jax.data.audio.audio_file import Place
from audiovae_jax.data.audio.remote import UnreachableError
from audiovae_jax.data.sets import probing
from audiovae_jax.data.sets.catalog import Audio, Excerpt, Track
from audiovae_jax.data.sets.probing import Options
from audiovae_jax.data.sets.shards import ShardedAudio
from audiovae_jax.errors import DataError

_WINDOW = 8192
_PLACES = (0.2, 0.4, 0.6, 0.8)
# Below the spectrum's peak: no music is, where there is any.
_FLOOR_DB = -90.0
FULL_BAND = 0.8  # of half the sample rate


def measure(audio: Audio) -> float:
    """The frequency in Hz above which no bin of four windows is within 90 dB of the spectrum's peak.

    Raises:
      DataError: it cannot be read.
    """
    return end([audio.read(start, count) for start, count in places(audio.frames)], audio.sample_rate)


def places(frames: int) -> list[tuple[int, int]]:
    """`(first sample, samples)` of the four windows of audio of that length."""
    count = min(_WINDOW, frames)
    return [(int(place * (frames - count)), count) for place in _PLACES]


def end(windows: Sequence[np.ndarray], sample_rate: int) -> float:
    """The frequency in Hz above which no bin of windows `[n, C]` is within 90 dB of the peak; 0 of silence."""
    power = np.zeros(_WINDOW // 2 + 1)
    for window in windows:
        mono = window.mean(axis=1)
        # Blackman-Harris: its side lobes lie under the floor.
        power = np.maximum(power, np.abs(np.fft.rfft(np.pad(mono, (0, _WINDOW - len(mono))) * _taper())) ** 2)
    if not power.any():
        return 0.0
    above = np.flatnonzero(10 * np.log10(power / power.max() + 1e-20) > _FLOOR_DB)
    return float(above[-1] * sample_rate / _WINDOW)


def balanced(
    tracks: Sequence[Track], share: float, sample_rate: int, options: Options, origin: str, crop_seconds: float = 0.0
) -> tuple[Track, ...]:
    """The tracks with weights by which `share` of the crops come from those whose spectrum is full.

    That is one that reaches 0.8 of half of `sample_rate`; within each kind the weights stay in proportion
    (Kumar et al., 2023, section 3.4, balance data so). Where there is one kind alone, nothing changes.

    Where spectra end is remembered, in a file for each `origin`, as `probing.probe` remembers what files are.
    """
    # What is generated is so at the rate that is asked for.
    recorded = [track.audio for track in tracks if hasattr(track.audio, "read")]

    def look(i):
        try:
            return True, deadline.within(options.read_timeout, measure, recorded[i])
        except UnreachableError:
            raise
        except DataError:
            return False, 0.0

    ends = iter(
        probing.remembered(
            f"spectra of {origin}", [_place(audio) for audio in recorded], look, options, "listening for full spectra"
        )
    )
    full = [not hasattr(track.audio, "read") or next(ends) >= FULL_BAND * sample_rate / 2 for track in tracks]
    totals = {True: 0.0, False: 0.0}
    for track, kind in zip(tracks, full, strict=True):
        totals[kind] += track.share(crop_seconds)
    if not all(totals.values()):
        return tuple(tracks)
    factors = {True: share / totals[True], False: (1 - share) / totals[False]}
    return tuple(
        dataclasses.replace(track, weight=track.weight * factors[kind])
        for track, kind in zip(tracks, full, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class _Part:
    within: Place
    part: str


def _place(audio):
    """What tells whether audio is what it was."""
    if isinstance(audio, Excerpt):
        return _Part(_place(audio.audio), f"{audio.start}+{audio.frames}")
    if isinstance(audio, ShardedAudio):
        return _Part(audio.shard.place, f"{audio.first_record}+{audio.frames}")
    return audio.path


def _taper():
    x = 2 * np.pi * np.arange(_WINDOW) / _WINDOW
    return 0.35875 - 0.48829 * np.cos(x) + 0.14128 * np.cos(2 * x) - 0.01168 * np.cos(3 * x)
