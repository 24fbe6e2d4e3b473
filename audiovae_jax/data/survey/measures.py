"""Measures of a track: loudness, silence, clipping, bandwidth."""

import dataclasses

import numpy as np

from audiovae_jax.data.audio import deadline, loudness
from audiovae_jax.data.sets import bandwidth
from audiovae_jax.data.sets.catalog import Track

WHOLE_SECONDS = 60.0  # longer tracks are measured in segments
STRETCHES, STRETCH_SECONDS = 12, 5.0
SILENCE_DB = -60.0  # RMS, relative to full scale
SILENCE_BLOCK = 0.05  # seconds
CLIP_RUN = 4  # consecutive samples at full scale; peaks of unclipped music are shorter
_FULL_SCALE = 0.9995


@dataclasses.dataclass(frozen=True)
class Measures:
    """Measures of one track.

    Attributes:
      name: of its file.
      seconds: length of the track.
      heard_seconds: length of the measured segments.
      loudness_lufs: integrated loudness; None for silence, and for less than 0.4 s.
      peak: maximum magnitude; full scale is 1.
      silence: fraction of the time in blocks of 50 ms with an RMS below -60 dBFS.
      clips_per_minute: runs of at least four samples at full scale, per minute.
      band_hz: bandwidth (see `sets.bandwidth`); 0 for silence.
      is_dual_mono: whether the track has several identical channels that are not silent.
    """

    name: str
    seconds: float
    heard_seconds: float
    loudness_lufs: float | None
    peak: float
    silence: float
    clips_per_minute: float
    band_hz: float
    is_dual_mono: bool


def measure(track: Track, read_timeout: float = 0.0) -> Measures:
    """Measure a track.

    Tracks longer than a minute are measured in twelve segments of 5 s.

    Args:
      track: of a data set.
      read_timeout: seconds after which a read times out; 0 for no timeout.

    Raises:
      DataError: the track cannot be read.
    """
    audio = track.audio
    stretches = [
        deadline.within(read_timeout, audio.read, start, count)
        for start, count in _places(audio.frames, audio.sample_rate)
    ]
    seconds = sum(map(len, stretches)) / audio.sample_rate
    return Measures(
        name=audio.name,
        seconds=track.seconds,
        heard_seconds=seconds,
        loudness_lufs=loudness.integrated(stretches, audio.sample_rate),
        peak=max(float(np.abs(stretch).max(initial=0)) for stretch in stretches),
        silence=_silence(stretches, audio.sample_rate),
        clips_per_minute=sum(map(_clips, stretches)) / seconds * 60,
        band_hz=deadline.within(read_timeout, bandwidth.measure, audio),
        is_dual_mono=_is_dual_mono(stretches),
    )


def _places(frames, sample_rate):
    if frames <= WHOLE_SECONDS * sample_rate:
        return [(0, frames)]
    count = round(STRETCH_SECONDS * sample_rate)
    return [(int(i * (frames - count) / (STRETCHES - 1)), count) for i in range(STRETCHES)]


def _silence(stretches, sample_rate):
    size, quiet, blocks = max(1, round(SILENCE_BLOCK * sample_rate)), 0, 0
    for stretch in stretches:
        count = -(-len(stretch) // size)
        power = np.pad(np.square(stretch, dtype=np.float64).mean(axis=1), (0, count * size - len(stretch)))
        # The last block may be shorter.
        lengths = np.minimum(size, len(stretch) - size * np.arange(count))
        power = power.reshape(count, size).sum(axis=1) / lengths
        quiet += int(lengths[power < 10 ** (SILENCE_DB / 10)].sum())
        blocks += len(stretch)
    return quiet / blocks


def _is_dual_mono(stretches):
    same = all((stretch == stretch[:, :1]).all() for stretch in stretches)
    return stretches[0].shape[1] > 1 and same and any(stretch.any() for stretch in stretches)


def _clips(audio):
    """Count runs of at least `CLIP_RUN` samples at full scale, over all channels."""
    at_top = np.abs(audio) >= _FULL_SCALE
    runs = 0
    for channel in at_top.T:
        if channel.any():
            edges = np.flatnonzero(np.diff(np.pad(channel.astype(np.int8), 1)))
            runs += int((edges[1::2] - edges[::2] >= CLIP_RUN).sum())
    return runs
