"""What one track sounds like: loudness, silence, clips, where its spectrum ends."""

import dataclasses

import numpy as np

from audiovae_jax.data.audio import deadline, loudness
from audiovae_jax.data.sets import bandwidth
from audiovae_jax.data.sets.catalog import Track

WHOLE_SECONDS = 60.0  # what is longer is heard in stretches
STRETCHES, STRETCH_SECONDS = 12, 5.0
SILENCE_DB = -60.0  # RMS, of full scale
SILENCE_BLOCK = 0.05  # seconds
CLIP_RUN = 4  # samples in a row at full scale, which no peak of music is
_FULL_SCALE = 0.9995


@dataclasses.dataclass(frozen=True)
class Measures:
    """Of one track.

    Attributes:
      name: of its file.
      seconds: of the track; `heard_seconds` of them were read.
      loudness_lufs: integrated; None for what is silent, or shorter than 0.4 s.
      peak: the greatest magnitude; full scale is 1.
      silence: share of the time whose RMS, in blocks of 50 ms, is below -60 dBFS.
      clips_per_minute: runs of four samples or more at full scale.
      band_hz: where the spectrum ends (see `datasets.bandwidth`); 0 for silence.
      is_dual_mono: whether it has several channels that are all the same, and not silent.
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
    """Listen to a track: to all of a minute, to twelve stretches of 5 s of what is longer.

    Args:
      track: of a data set.
      read_timeout: seconds after which a read that does not answer is given up; 0 waits for ever.

    Raises:
      DataError: it cannot be read.
    """
    audio = track.audio
    stretches = [
        deadline.within(read_timeout, audio.read, start, count)
        for start, count in _places(audio.frames, audio.sample_rate)
    ]
    heard = sum(map(len, stretches)) / audio.sample_rate
    return Measures(
        name=audio.name,
        seconds=track.seconds,
        heard_seconds=heard,
        loudness_lufs=loudness.integrated(stretches, audio.sample_rate),
        peak=max(float(np.abs(stretch).max(initial=0)) for stretch in stretches),
        silence=_silence(stretches, audio.sample_rate),
        clips_per_minute=sum(map(_clips, stretches)) / heard * 60,
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
        # The last block may be shorter, and is as long as it is.
        lengths = np.minimum(size, len(stretch) - size * np.arange(count))
        power = power.reshape(count, size).sum(axis=1) / lengths
        quiet += int(lengths[power < 10 ** (SILENCE_DB / 10)].sum())
        blocks += len(stretch)
    return quiet / blocks


def _is_dual_mono(stretches):
    same = all((stretch == stretch[:, :1]).all() for stretch in stretches)
    return stretches[0].shape[1] > 1 and same and any(stretch.any() for stretch in stretches)


def _clips(audio):
    """How many runs of `CLIP_RUN` or more samples lie at full scale, over all channels."""
    at_top = np.abs(audio) >= _FULL_SCALE
    runs = 0
    for channel in at_top.T:
        if channel.any():
            edges = np.flatnonzero(np.diff(np.pad(channel.astype(np.int8), 1)))
            runs += int((edges[1::2] - edges[::2] >= CLIP_RUN).sum())
    return runs
