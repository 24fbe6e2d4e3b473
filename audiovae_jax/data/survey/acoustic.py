"""Acoustic fingerprints, which are alike for all encodings of one recording.

The method is that of Haitsma and Kalker, 2002, "A Highly Robust Audio Fingerprinting System". Each frame of audio gives
a word of 32 bits. A bit is the sign of the change over time of the difference between two adjacent bands' energies. The
bits do not depend on the level, and hardly on the encoding.

Two stretches of 6 s are compared: the first one after leading silence, and the one in the middle of the rest. Both must
match. Pieces that only begin with the same loop are thus told apart.
"""

import base64
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from audiovae_jax.data.sets.catalog import Audio

STRETCH_SECONDS = 6.0
_RATE = 8000  # Hz
_FRAME, _HOP = 4096, 256  # samples: 512 ms and 32 ms
_BAND_EDGES = np.geomspace(300.0, 2000.0, 34)  # Hz
_FLOOR = 0.1  # of the bands' mean energy
_LAG = 2  # frames between the energies whose change is a bit
_QUIET_DB = -50.0  # of a frame, relative to the loudest one; its word is 0, which is not compared
_LEAD_DB = -60.0  # relative to full scale; quieter audio at the beginning is leading silence
_MAX_LEAD_SECONDS = 30.0
_MIN_WORDS = 60  # minimum number of words to compare: 2.4 s
_MAX_SHIFT = 32  # words between the stretches of two encodings: 1 s
# Of the bits of encodings of one recording, 5 % to 15 % differ (MP3 and Vorbis of 64 kbit/s and more). Of other
# recordings, 40 % differ in the best alignment, and 23 % if both have a drum loop that is 6 dB louder than the rest.
_MAX_ERROR = 0.18
_MAX_SECONDS_APART = 1.0  # difference in length that encoders and the removal of silence cause
_NEIGHBOURS = 16  # number of other tracks with the same word that a track is compared with


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """A track's fingerprint.

    Attributes:
      seconds: length of the track without leading silence.
      stretches: words `[frames]` uint32 of one or two stretches. A word of 0 stands for silence.
    """

    seconds: float
    stretches: tuple[np.ndarray, ...]

    def to_json(self) -> list:
        return [self.seconds, *(base64.b64encode(words.astype("<u4").tobytes()).decode() for words in self.stretches)]

    @classmethod
    def from_json(cls, content: list) -> "Fingerprint":
        seconds, *stretches = content
        return cls(seconds, tuple(np.frombuffer(base64.b64decode(words), "<u4") for words in stretches))


def fingerprint(audio: Audio, read: Callable[[int, int], np.ndarray] | None = None) -> Fingerprint:
    """Take the fingerprint of audio.

    Args:
      audio: of a track.
      read: reads `[count, channels]` from a sample on; by default `audio.read`.

    Raises:
      DataError: the audio cannot be read.
    """
    read = read or audio.read
    lead = _lead(audio, read)
    rest = audio.frames - lead
    if rest == 0:
        return Fingerprint(0.0, ())
    size = min(rest, round(STRETCH_SECONDS * audio.sample_rate))
    starts = sorted({lead, lead + (rest - size) // 2})
    stretches = [_words(read(start, size), audio.sample_rate) for start in starts]
    return Fingerprint(rest / audio.sample_rate, tuple(words for words in stretches if words.size))


def matches(fingerprints: Sequence[Fingerprint]) -> list[tuple[int, int]]:
    """Return the pairs of positions whose fingerprints are of one recording.

    The positions of a pair are in order. An index of the words selects the pairs that are compared, so that the work
    hardly grows faster than the number of tracks.
    """
    if len(fingerprints) < 2:
        return []
    pairs = {pair for part in range(2) for pair in _candidates(fingerprints, part)}
    return sorted(pair for pair in pairs if is_same(*(fingerprints[i] for i in pair)))


def is_same(one: Fingerprint, other: Fingerprint) -> bool:
    """Return whether two fingerprints are of one recording."""
    compared = list(zip(one.stretches, other.stretches, strict=False))
    near = abs(one.seconds - other.seconds) <= _MAX_SECONDS_APART
    return near and bool(compared) and all(error(*words) <= _MAX_ERROR for words in compared)


def error(one: np.ndarray, other: np.ndarray) -> float:
    """Return the smallest fraction of bits in which two stretches' words differ.

    Alignments of up to 1 s are tried.
    """
    size = min(len(one), len(other))
    one, other = one[:size], other[:size]
    shifted = np.lib.stride_tricks.sliding_window_view(np.pad(one, _MAX_SHIFT), max(size, 1))
    sounding = (shifted != 0) & (other != 0)
    counts = sounding.sum(axis=1)
    errors = (np.bitwise_count(shifted ^ other) * sounding).sum(axis=1) / (32 * np.maximum(counts, 1))
    return float(errors[counts >= _MIN_WORDS].min(initial=1.0))


def _lead(audio, read):
    """Return the number of samples of leading silence.

    In silent audio, these are all samples.
    """
    size = audio.sample_rate
    for start in range(0, min(audio.frames, round(_MAX_LEAD_SECONDS * audio.sample_rate)), size):
        block = np.abs(read(start, min(size, audio.frames - start))).max(axis=1)
        loud = np.flatnonzero(block > 10 ** (_LEAD_DB / 20))
        if loud.size:
            return start + int(loud[0])
    return audio.frames


def _words(samples, sample_rate):
    """Return the words `[frames]` of samples `[T, C]`."""
    import soxr

    mono = soxr.resample(samples.mean(axis=1), sample_rate, _RATE, quality="LQ")
    if len(mono) < _FRAME + _LAG * _HOP:
        return np.zeros(0, np.uint32)
    frames = np.lib.stride_tricks.sliding_window_view(mono, _FRAME)[::_HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(_FRAME), axis=1)) ** 2
    edges = np.round(_BAND_EDGES * _FRAME / _RATE).astype(int)
    energy = np.add.reduceat(power[:, : edges[-1]], edges[:-1], axis=1)
    total = energy.sum(axis=1)[_LAG:]
    # The floor keeps nearly empty bands, whose changes are noise of the encoding, from deciding.
    floor = _FLOOR * energy.mean(axis=1, keepdims=True) + 1e-12
    slope = np.diff(np.log(energy + floor), axis=1)
    bits = slope[_LAG:] > slope[:-_LAG]
    words = np.packbits(bits, axis=1).view(">u4")[:, 0].astype(np.uint32)
    return np.where(total > max(total.max() * 10 ** (_QUIET_DB / 10), 1e-12), words, 0)


def _candidates(fingerprints, part) -> Iterator[tuple[int, int]]:
    """Iterate over the pairs of about the same length that share a word."""
    words, tracks = [], []
    for i, of_track in enumerate(fingerprints):
        unique = np.unique(of_track.stretches[part]) if len(of_track.stretches) > part else np.zeros(0, np.uint32)
        words.append(unique[unique != 0])
        tracks.append(np.full(len(words[-1]), i))
    words, tracks = np.concatenate(words), np.concatenate(tracks)
    seconds = np.asarray([each.seconds for each in fingerprints])
    order = np.lexsort((seconds[tracks], words))  # tracks of one length are neighbours
    words, tracks = words[order], tracks[order]
    for shift in range(1, _NEIGHBOURS + 1):
        first, second = tracks[:-shift], tracks[shift:]
        near = (words[:-shift] == words[shift:]) & (np.abs(seconds[first] - seconds[second]) <= _MAX_SECONDS_APART)
        pairs = np.sort(np.stack([first[near], second[near]], axis=1), axis=1)
        yield from map(tuple, np.unique(pairs, axis=0).tolist())
