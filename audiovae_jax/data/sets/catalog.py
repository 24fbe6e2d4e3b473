"""Catalogs: the tracks of a data set, split into training and validation."""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from audiovae_jax.data.audio import channels, levels
from audiovae_jax.data.audio.remote import is_url
from audiovae_jax.errors import DataError, RootError

_MIN_FILES_FOR_THREE, _MIN_VALIDATION_FILES = 10, 3  # the minimum applies from this many files on


class Audio(Protocol):
    """Audio with random access: a file, a part of one, or a track in a shard.

    Attributes:
      name: for messages.
      frames: samples per channel.
      sample_rate: in Hz.
      channels: of what `read` returns.
      speakers: names of these channels (see `channels.of_file`), None if they are not known.
    """

    name: str
    frames: int
    sample_rate: int
    channels: int
    speakers: tuple[str, ...] | None

    def read(self, start: int, count: int) -> np.ndarray:
        """Read `[count, channels]` float32 from sample `start` on.

        Raises:
          DataError: reading failed. The message has the name.
        """


@dataclasses.dataclass(frozen=True)
class Track:
    """Audio that crops are drawn from.

    Attributes:
      key: its name in the data set, the same on every machine.
      audio: its samples.
      weight: how often a second of it is drawn, relative to a second of weight 1.
      group: name that it shares with other tracks, which `by_hash` keeps on one side; None if it is on its own.
    """

    key: str
    audio: Audio
    weight: float = 1.0
    group: str | None = None

    @property
    def seconds(self) -> float:
        return self.audio.frames / self.audio.sample_rate

    def share(self, shortest: float = 0.0) -> float:
        """Return the relative probability of drawing a crop from this track.

        Tracks shorter than `shortest` seconds count as that long.
        """
        return max(self.seconds, shortest) * self.weight


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """A section of other audio: `frames` samples from `start` on."""

    audio: Audio
    start: int
    frames: int

    @property
    def name(self) -> str:
        return self.audio.name

    @property
    def sample_rate(self) -> int:
        return self.audio.sample_rate

    @property
    def channels(self) -> int:
        return self.audio.channels

    @property
    def speakers(self) -> tuple[str, ...] | None:
        return self.audio.speakers

    def read(self, start: int, count: int) -> np.ndarray:
        return self.audio.read(self.start + start, count)


@dataclasses.dataclass(frozen=True)
class Catalog:
    """A data set's tracks.

    Attributes:
      train, validation: the tracks of each split.
      skipped: `(name, reason)` of the files that cannot be used.
      fingerprint: a hash that changes if tracks are added or removed, or change length, rate, channels or weight.
      origin: a description for messages, like `files under DIR`.
      ignored: `(name, reason)` of what was left out, though its name or place may promise audio. Training does not
        count it as unusable.
    """

    train: tuple[Track, ...]
    validation: tuple[Track, ...]
    skipped: tuple[tuple[str, str], ...]
    fingerprint: str
    origin: str
    ignored: tuple[tuple[str, str], ...] = ()


def by_hash(tracks: Sequence[Track], fraction: float) -> tuple[list[Track], list[Track]]:
    """Split tracks by a hash of their keys into `(train, validation)`.

    About `fraction` of the tracks validate, and at least three files of ten or more. The hash decides the side of a
    track, so a track keeps its side when others are added. If too few tracks would validate, those with the next hashes
    do too. Each side has at least one track. A single track is on both sides. The tracks of a group are on one side,
    which the hash of the group's name decides.
    """
    groups, _, count = _validating(tracks, fraction)
    validation = {id(track) for group in groups[:count] for track in group}
    train = [track for track in tracks if id(track) not in validation] or list(tracks)
    return train, [track for track in tracks if id(track) in validation]


def of_sides(
    train: Sequence[Track],
    validation: Sequence[Track],
    skipped: Iterable[tuple[str, str]],
    origin: str,
    ignored: Iterable[tuple[str, str]] = (),
) -> Catalog:
    """Make a catalog of tracks whose split is given."""
    mark = fingerprint([*train, *validation])
    return Catalog(tuple(train), tuple(validation), tuple(skipped), mark, origin, tuple(ignored))


def split_by_hash(
    tracks: Sequence[Track],
    skipped: Iterable[tuple[str, str]],
    origin: str,
    fraction: float,
    ignored: Iterable[tuple[str, str]] = (),
) -> Catalog:
    """Make a catalog of tracks that `by_hash` splits."""
    train, validation = by_hash(tracks, fraction)
    mark = fingerprint(tracks, fraction)
    return Catalog(tuple(train), tuple(validation), tuple(skipped), mark, origin, tuple(ignored))


def fingerprint(tracks: Iterable[Track], fraction: float | None = None) -> str:
    """Hash the tracks' keys, lengths, rates, channels, weights and groups.

    Args:
      tracks: all of them.
      fraction: that of `by_hash`, if it has split the tracks. The tracks that validate only because of the minimum are
        then hashed too.
    """
    tracks = list(tracks)
    lines = [
        f"{track.key} {track.audio.frames} {track.audio.sample_rate} {track.audio.channels}"
        + ("" if track.weight == 1.0 else f" {track.weight!r}")
        + ("" if track.group is None else f" of {track.group}")
        for track in tracks
    ]
    if fraction is not None:
        # A run from before the minimum existed thus detects that its tracks are split differently now.
        groups, before, count = _validating(tracks, fraction)
        lines += [f"{track.key} validates" for group in groups[before:count] for track in group]
    return digest("\n".join(lines))


def digest(text: str) -> str:
    """Hash a text to 16 hexadecimal digits."""
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]


def _validating(tracks, fraction):
    """Return groups of tracks by hash, and two counts of those that validate.

    A group is a list of tracks. A track without a group is a group of its own. The first count follows from `fraction`
    alone. The second includes the minimum of validation files.
    """
    groups: dict[str | int, list[Track]] = {}
    for i, track in enumerate(tracks):
        groups.setdefault(i if track.group is None else track.group, []).append(track)
    placed = sorted(((_place(of[0].group or of[0].key), of) for of in groups.values()), key=lambda pair: pair[0])
    order = [group for _, group in placed]
    most = max(1, len(order) - 1)
    before = count = min(max(1, sum(place < fraction for place, _ in placed)), most)

    def files(groups):
        return len({track.audio.name for group in groups for track in group})

    if files(order) >= _MIN_FILES_FOR_THREE:
        while count < most and files(order[:count]) < _MIN_VALIDATION_FILES:
            count += 1
    return order, before, count


def mixed(parts: Sequence[tuple[Catalog, float]], crop_seconds: float) -> Catalog:
    """Mix several data sets, each drawn by its weight, independent of its length.

    Args:
      parts: data sets and their weights.
      crop_seconds: length of crops. Shorter tracks count as that long.
    """
    total = sum(weight for _, weight in parts)

    def weighed(side: str) -> tuple[Track, ...]:
        tracks = []
        for i, (catalog, weight) in enumerate(parts):
            of_side = getattr(catalog, side)
            seconds = sum(track.share(crop_seconds) for track in of_side)
            tracks += [_within(i, track, track.weight * weight / total / seconds) for track in of_side]
        return tuple(tracks)

    marks = " ".join(f"{catalog.fingerprint} {weight!r}" for catalog, weight in parts)
    return Catalog(
        train=weighed("train"),
        validation=weighed("validation"),
        skipped=tuple(entry for catalog, _ in parts for entry in catalog.skipped),
        fingerprint=digest(marks),
        origin="; ".join(f"{weight / total:.0%} of crops from {catalog.origin}" for catalog, weight in parts),
        ignored=tuple(entry for catalog, _ in parts for entry in catalog.ignored),
    )


def joined(parts: Sequence[Catalog]) -> Catalog:
    """Join several data sets without changing weights; return a single one unchanged."""
    if len(parts) == 1:
        return parts[0]
    train, validation = (
        tuple(_within(i, track) for i, part in enumerate(parts) for track in getattr(part, side))
        for side in ("train", "validation")
    )
    skipped, ignored = ([entry for part in parts for entry in getattr(part, name)] for name in ("skipped", "ignored"))
    return of_sides(train, validation, skipped, "; ".join(part.origin for part in parts), ignored)


def all_to_train(catalog: Catalog) -> Catalog:
    """Move all tracks of a data set to training."""
    # By key, since a track may be in both splits.
    tracks = {track.key: track for track in catalog.train + catalog.validation}
    return dataclasses.replace(catalog, train=tuple(tracks.values()), validation=())


def validated_on(catalog: Catalog, other: Catalog) -> Catalog:
    """Replace a data set's validation by all tracks of another data set."""
    whole = all_to_train(other)
    marks = f"{catalog.fingerprint} validated on {whole.fingerprint}"
    return Catalog(
        train=catalog.train,
        validation=tuple(_within("val_root", track) for track in whole.train),
        skipped=catalog.skipped + whole.skipped,
        fingerprint=digest(marks),
        origin=f"{catalog.origin}, and validation of {whole.origin}",
        ignored=catalog.ignored + whole.ignored,
    )


def without_validated(catalog: Catalog, validation: Iterable[Track]) -> Catalog:
    """Remove training tracks that share samples with validation tracks.

    Raises:
      DataError: no training tracks are left.
    """
    spans = collections.defaultdict(list)
    for track in validation:
        source, start, end = _span(track.audio)
        spans[source].append((start, end))

    def is_validated(track):
        source, start, end = _span(track.audio)
        return any(start < other_end and other_start < end for other_start, other_end in spans.get(source, ()))

    train = tuple(track for track in catalog.train if not is_validated(track)) if spans else catalog.train
    if not train:
        raise DataError(f"{catalog.origin}: nothing is left to train on, since all of it is validated on")
    return catalog if len(train) == len(catalog.train) else dataclasses.replace(catalog, train=train)


def notices(tracks: Iterable[Track]) -> list[str]:
    """Describe files that are loud, slow to read, or of assumed speakers.

    Each kind is one line.
    """
    files = {}
    for track in tracks:
        audio = track.audio
        while isinstance(audio, Excerpt):
            audio = audio.audio
        if hasattr(audio, "read"):  # the built-in generator has none
            files[audio.name] = audio
    unnamed, loud, sequential = collections.defaultdict(list), [], []
    for name, audio in files.items():
        if audio.channels > 2 and audio.speakers is None:
            unnamed[audio.channels].append(name)
        level = getattr(audio, "level", None)
        if level is not None:
            loud.append((level, name))
        if "sequential" in (getattr(audio, "index", None) or ()):
            sequential.append(name)
    lines = [
        f"{_counted(len(names))} with {channels.assumed(count)}; the first: {names[0]}"
        for count, names in sorted(unnamed.items())
    ]
    if loud:
        level, name = max(loud)
        lines.append(f"{_counted(len(loud))} far above full scale; the loudest: {name} {levels.far_above(level)}")
    if sequential:
        count, first = len(sequential), sequential[0]
        lines.append(
            f"{_counted(count)} decoded from the beginning for every crop, which is slow; make shards first "
            f"(audiovae-jax make_shards); the first: {first}"
        )
    return lines


def _counted(files):
    return f"{files} file{'' if files == 1 else 's'}"


def require_tracks(tracks: Sequence[Track], skipped: Sequence[tuple[str, str]], root: str):
    """Raise DataError, with the first reasons, if there are no tracks."""
    if not tracks:
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in skipped[:10])
        raise RootError(root, f"contains no usable audio file:\n{reasons}")


def summary(entries: Sequence[tuple[str, str]]) -> list[str]:
    """Summarise `(name, reason)` pairs as one line per reason.

    A line has the number of names and the first one.
    """
    names = collections.defaultdict(list)
    for name, reason in entries:
        names[reason].append(name)
    return [f"{reason}: {len(of)}, the first is {of[0]}" for reason, of in names.items()]


def left_out(ignored: Sequence[tuple[str, str]]) -> list[str]:
    """Describe what was left out (see `Catalog.ignored`), in one line per reason."""
    return [f"left out: {line}" for line in summary(ignored)]


def _span(audio):
    """Return `(source, first sample, end)` of audio; links are resolved."""
    start, frames = 0, audio.frames
    while isinstance(audio, Excerpt):
        start, audio = start + audio.start, audio.audio
    name = audio.name
    return name if is_url(name) else os.path.realpath(name), start, start + frames


def _within(part, track, weight=None):
    """Prefix a track's key with the name of its data set."""
    return dataclasses.replace(track, key=f"{part}/{track.key}", weight=track.weight if weight is None else weight)


def _place(key):
    return int.from_bytes(hashlib.sha256(os.fsencode(key)).digest()[:8]) / 2**64
