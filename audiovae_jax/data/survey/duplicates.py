"""Recordings that a data set has more than once, in particular in both splits.

Exact copies have equal samples, in any lossless format. Other encodings of a recording are found
by their acoustic fingerprints. Hashes and fingerprints are cached like the results of probing.
"""

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from audiovae_jax.data.audio import deadline, remote
from audiovae_jax.data.sets import bandwidth, probing
from audiovae_jax.data.sets.catalog import Audio, Catalog, Track
from audiovae_jax.data.survey import acoustic
from audiovae_jax.data.survey.acoustic import Fingerprint
from audiovae_jax.errors import DataError, printable

_WINDOWS, _WINDOW_SECONDS = 5, 0.2  # windows to hash in longer tracks, and their length


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Tracks of one recording.

    Attributes:
      train, validation: names of the files in each split.
      is_exact: whether their samples are equal.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    is_exact: bool

    @property
    def is_leak(self) -> bool:
        """Whether the recording is trained on and validated on."""
        return bool(self.train) and bool(self.validation)


def leak(catalog: Catalog, options: probing.Options) -> str | None:
    """Return a warning about exact copies in both splits, or None if there are none.

    Only files that have the length, rate and channels of one in the other split are read, at five places. Files behind
    URLs are left out, since a request for each would take long.
    """
    held = {_shape(track.audio) for track in catalog.validation}
    both = held & {_shape(track.audio) for track in catalog.train}
    tracks = [track for track in _all(catalog) if _shape(track.audio) in both and not remote.is_url(track.audio.name)]
    found = [
        group for group in _grouped(catalog, tracks, _copies(catalog, tracks, options, "leaks"), []) if group.is_leak
    ]
    if not found:
        return None
    count = sum(len(group.validation) for group in found)
    return (
        f"{count} of {len(catalog.validation)} validation tracks are exact copies of training tracks, so that their "
        f"validation is too good; the first: {printable(found[0].validation[0])} is {printable(found[0].train[0])}. "
        "check_data lists all"
    )


def find(catalog: Catalog, options: probing.Options, limit: int) -> tuple[tuple[Duplicates, ...], int]:
    """Find the recordings that a data set has more than once.

    Args:
      catalog: the data set.
      options: of probing, for the cache and timeouts.
      limit: maximum number of tracks to compare. Validation tracks come first, then training tracks, spread evenly.

    Returns:
      The duplicates, those in both splits first, and the number of tracks compared.
    """
    held = {track.key for track in catalog.validation}
    tracks = sorted(_all(catalog), key=lambda track: track.key not in held)
    held = [track for track in tracks if track.key in held][:limit]
    others, room = tracks[len(held) :], limit - len(held)
    if len(others) > room:
        others = [others[i * len(others) // room] for i in range(room)]
    tracks = held + others
    copies = _copies(catalog, tracks, options, "copies")
    encodings = acoustic.matches(_fingerprints(catalog, tracks, options))
    found = _grouped(catalog, tracks, copies, encodings)
    return tuple(sorted(found, key=lambda group: not group.is_leak)), len(tracks)


def sample_hash(audio: Audio, read: Callable[[int, int], np.ndarray]) -> str | None:
    """Hash the samples of audio at five places; None for silence.

    Args:
      audio: of a track.
      read: reads `[count, channels]` from a sample on.
    """
    size = min(audio.frames, round(_WINDOW_SECONDS * audio.sample_rate))
    whole = audio.frames <= _WINDOWS * size
    windows = (
        [(0, audio.frames)] if whole else [(i * (audio.frames - size) // (_WINDOWS - 1), size) for i in range(_WINDOWS)]
    )
    hashed, is_silent = hashlib.blake2b(repr(_shape(audio)).encode(), digest_size=12), True
    for start, count in windows:
        samples = np.ascontiguousarray(read(start, count) + np.float32(0))  # makes -0 into 0
        is_silent &= not samples.any()
        hashed.update(samples)
    return None if is_silent else hashed.hexdigest()


def _all(catalog) -> list[Track]:
    """Return each track with samples once."""
    tracks = {track.key: track for track in (*catalog.train, *catalog.validation) if hasattr(track.audio, "read")}
    return list(tracks.values())


def _shape(audio) -> Hashable:
    return audio.frames, audio.sample_rate, audio.channels


def _copies(catalog, tracks, options, kind) -> list[list[int]]:
    """Return the positions of tracks with equal samples, in groups."""
    shapes = collections.Counter(_shape(track.audio) for track in tracks)
    asked = [i for i, track in enumerate(tracks) if shapes[_shape(track.audio)] > 1]
    found = _cached(
        f"{kind} in {catalog.origin}", [tracks[i] for i in asked], sample_hash, options, "looking for copies"
    )
    groups = collections.defaultdict(list)
    for i, hashed in zip(asked, found, strict=True):
        if hashed:
            groups[hashed].append(i)
    return [group for group in groups.values() if len(group) > 1]


def _fingerprints(catalog, tracks, options) -> list[Fingerprint]:
    """Return the fingerprints of tracks; those of unreadable ones match nothing."""

    def take(audio, read):
        return acoustic.fingerprint(audio, read).to_json()

    found = _cached(f"fingerprints of {catalog.origin}", tracks, take, options, "comparing recordings")
    return [Fingerprint.from_json(content or [0.0]) for content in found]


def _cached(subject, tracks: Sequence[Track], take, options, doing) -> list[Any]:
    """Return `take(audio, read)` of each track, cached until the track changes.

    The value is "" for a track that cannot be read.
    """

    def measure(i):
        audio = tracks[i].audio
        read = functools.partial(deadline.within, options.timeout(audio.name), audio.read)
        try:
            return True, take(audio, read) or ""
        except remote.UnreachableError:
            raise
        except DataError:  # the survey or a crop reports the error
            return False, ""

    places = [bandwidth.place(track.audio) for track in tracks]
    return probing.cached(subject, places, measure, options, doing)


def _grouped(catalog, tracks, copies, pairs) -> list[Duplicates]:
    """Join groups of equal tracks, and pairs of tracks of one recording."""
    parents = list(range(len(tracks)))

    def root(i):
        while parents[i] != i:
            parents[i] = parents[parents[i]]
            i = parents[i]
        return i

    copy_of = {i: group[0] for group in copies for i in group}
    for i, j in [*copy_of.items(), *pairs]:
        parents[max(root(i), root(j))] = min(root(i), root(j))
    groups = collections.defaultdict(list)
    for i in range(len(tracks)):
        groups[root(i)].append(i)
    sides = [{track.key for track in side} for side in (catalog.train, catalog.validation)]
    found = []
    for group in groups.values():
        if len(group) > 1:
            names = [tuple(tracks[i].audio.name for i in group if tracks[i].key in keys) for keys in sides]
            found.append(Duplicates(*names, is_exact=len({copy_of.get(i, -i - 1) for i in group}) == 1))
    return found
