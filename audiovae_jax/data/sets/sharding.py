"""Parts of shard writers: grouping tracks, claiming folders, locating records."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from audiovae_jax.data.audio import remote
from audiovae_jax.data.sets import shards
from audiovae_jax.data.sets.catalog import Catalog, Track
from audiovae_jax.errors import DataError, printable
from audiovae_jax.storage import atomic

PLAN = "unfinished.json"  # the settings of unfinished shards, until the index exists
_SEARCHED = 1 << 12  # bytes of the first search for a record


def by_key(catalog: Catalog) -> tuple[dict[str, Track], dict[str, list[str]]]:
    """Return the tracks by key, in order, and the splits of each."""
    tracks: dict[str, Track] = {}
    sides: dict[str, list[str]] = {}
    for side, of_side in (("train", catalog.train), ("validation", catalog.validation)):
        for track in of_side:
            tracks[track.key] = track
            sides.setdefault(track.key, []).append(side)
    return tracks, sides


def groups(tracks: Sequence[Track], size_of: Callable[[Track], int], shard_bytes: int) -> list[list[Track]]:
    """Group consecutive tracks into shards of up to `shard_bytes`, or a single track."""
    found, size = [[]], 0
    for track in tracks:
        of_track = size_of(track)
        if found[-1] and size + of_track > shard_bytes:
            found.append([])
            size = 0
        found[-1].append(track)
        size += of_track
    return found


def require_apart(root: str, folder: Path):
    """Raise DataError if shards of `root` would be written into `root`."""
    if not remote.is_url(root) and os.path.realpath(remote.local_path(root)) == os.path.realpath(folder):
        raise DataError(f"{printable(folder)} is both input and output; give another output folder")


def claim(folder: Path, settings: dict[str, Any]):
    """Claim a folder for shards with these settings, or check an earlier claim.

    Raises:
      DataError: the folder has shards with other settings, which the message lists, or cannot be written to.
    """
    for name in (shards.INDEX, PLAN):
        path = folder / name
        if not path.exists():
            continue
        try:
            previous = dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(
                f"{printable(path)} cannot be read ({error}); delete the folder, or give another"
            ) from error
        different = [
            f"{key}: {previous.get(key)!r} there, {value!r} now"
            for key, value in settings.items()
            if previous.get(key) != value
        ]
        if different:
            raise DataError(
                f"{printable(folder)} contains shards of another data set or other settings ({'; '.join(different)} "
                "differ); give another folder"
            )
    try:
        put(folder / PLAN, json.dumps(settings))
    except OSError as error:
        raise DataError(f"{printable(folder)} cannot be written to: {error.strerror or error}") from error


def finish(folder: Path):
    """Remove the claim and the temporary files of killed runs once all shards exist."""
    (folder / PLAN).unlink(missing_ok=True)
    for left in folder.iterdir():
        if atomic.is_temporary(left.name):
            left.unlink(missing_ok=True)


def put(path: Path, text: str):
    """Write a file that other hosts may write at the same time with the same content."""
    try:
        with atomic.replacing(path) as temporary:
            temporary.write_text(text)
    except FileNotFoundError:  # a process with the same id on another host was faster
        if not path.exists():
            raise


def positions(path: Path, records: Sequence[tuple[int, bytes]]) -> list[list[int]]:
    """Find the positions of records in a shard's stream without block headers.

    The records are searched for in order, by their first bytes.

    Args:
      path: of the shard.
      records: `(size, first bytes)` of each record.

    Returns:
      `[position, size]` of each record.

    Raises:
      DataError: a record is not found.
    """
    found, after = [], 0
    with open(path, "rb") as file:
        for size, beginning in records:
            searched, at = _SEARCHED, -1
            while at < 0:
                stretch = shards.read_stream(file, after, after + searched)
                at = stretch.find(beginning)
                if at < 0 and len(stretch) < searched:
                    raise DataError(
                        f"{printable(path)}: a record was not written as expected; is array_record too new?"
                    )
                searched *= 16
            found.append([after + at, size])
            after += at + size
    return found
