"""The bandwidth of audio, and weighting tracks by it.

Low-passed audio, from lossy compression or narrow-band recording, teaches a model to leave high frequencies empty.
"""

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
# Level of the floor relative to the spectrum's peak. Bands that contain music are above it.
_FLOOR_DB = -90.0
FULL_BAND = 0.8  # fraction of half the sample rate that a full spectrum reaches


def measure(audio: Audio) -> float:
    """Measure the bandwidth in Hz from four windows of the audio; see `end`.

    Raises:
      DataError: the audio cannot be read.
    """
    return end([audio.read(start, count) for start, count in places(audio.frames)], audio.sample_rate)


def places(frames: int) -> list[tuple[int, int]]:
    """Return `(first sample, samples)` of the four windows for audio of this length."""
    count = min(_WINDOW, frames)
    return [(int(place * (frames - count)), count) for place in _PLACES]


def end(windows: Sequence[np.ndarray], sample_rate: int) -> float:
    """Return the frequency in Hz where the spectrum of windows `[n, C]` ends.

    Above it, no bin of any window is within 90 dB of the peak. It is 0 for silence.
    """
    power = np.zeros(_WINDOW // 2 + 1)
    for window in windows:
        mono = window.mean(axis=1)
        # A Blackman-Harris window, whose side lobes are below the floor.
        power = np.maximum(power, np.abs(np.fft.rfft(np.pad(mono, (0, _WINDOW - len(mono))) * _taper())) ** 2)
    if not power.any():
        return 0.0
    above = np.flatnonzero(10 * np.log10(power / power.max() + 1e-20) > _FLOOR_DB)
    return float(above[-1] * sample_rate / _WINDOW)


def balanced(
    tracks: Sequence[Track], share: float, sample_rate: int, options: Options, origin: str, crop_seconds: float = 0.0
) -> tuple[Track, ...]:
    """Reweight tracks so that full-band ones get `share` of the crops.

    A track is full-band if its spectrum reaches 0.8 of half of `sample_rate`. Within each of the two groups the weights
    keep their proportions, as in Kumar et al., 2023, section 3.4. If all tracks are in one group, nothing changes.

    Bandwidths are cached in a file for each `origin`, like the results of `probing.probe`.
    """
    # Generated audio, which has no `read`, is always full-band.
    recorded = [track.audio for track in tracks if hasattr(track.audio, "read")]

    def measured(i):
        try:
            return True, deadline.within(options.timeout(recorded[i].name), measure, recorded[i])
        except UnreachableError:
            raise
        except DataError:
            return False, 0.0

    marks = [place(audio) for audio in recorded]
    ends = iter(probing.cached(f"spectra of {origin}", marks, measured, options, "listening for full spectra"))
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


def place(audio: Audio) -> "Place | _Part":
    """Return a place whose `probing.identity` changes with the audio."""
    if isinstance(audio, Excerpt):
        return _Part(place(audio.audio), f"{audio.start}+{audio.frames}")
    if isinstance(audio, ShardedAudio):
        return _Part(audio.shard.place, f"{audio.first_record}+{audio.frames}")
    return audio.path


def _taper():
    x = 2 * np.pi * np.arange(_WINDOW) / _WINDOW
    return 0.35875 - 0.48829 * np.cos(x) + 0.14128 * np.cos(2 * x) - 0.01168 * np.cos(3 * x)
