"""What writers of shards have in common: which tracks go where, whose a folder is, and where records lie."""

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

PLAN = "unfinished.json"  # what a folder is being made of, until its index is there
_SEARCHED = 1 << 12  # bytes, the least that is searched for a record at once


def by_key(catalog: Catalog) -> tuple[dict[str, Track], dict[str, list[str]]]:
    """The tracks by key, in their order, and the sides that each is on."""
    tracks: dict[str, Track] = {}
    sides: dict[str, list[str]] = {}
    for side, of_side in (("train", catalog.train), ("validation", catalog.validation)):
        for track in of_side:
            tracks[track.key] = track
            sides.setdefault(track.key, []).append(side)
    return tracks, sides


def groups(tracks: Sequence[Track], size_of: Callable[[Track], int], shard_bytes: int) -> list[list[Track]]:
    """Consecutive tracks, a shard each: as many as `shard_bytes` takes, at least one."""
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
    """Raise DataError if shards of `root` would be written into it."""
    if not remote.is_url(root) and os.path.realpath(remote.local_path(root)) == os.path.realpath(folder):
        raise DataError(f"{printable(folder)} would be input and output at once; give another output folder")


def claim(folder: Path, settings: dict[str, Any]):
    """Note what a folder is made of, or see that it is being made of the same.

    Raises:
      DataError: it is of something else, the message says of what; or it cannot be written to.
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
                f"{printable(folder)} holds shards of another data set or other settings ({'; '.join(different)} "
                "differ); give another folder"
            )
    try:
        put(folder / PLAN, json.dumps(settings))
    except OSError as error:
        raise DataError(f"{printable(folder)} cannot be written to: {error.strerror or error}") from error


def finish(folder: Path):
    """Remove what was of use while shards were made, and what killed runs have left: all is there now."""
    (folder / PLAN).unlink(missing_ok=True)
    for left in folder.iterdir():
        if atomic.is_temporary(left.name):
            left.unlink(missing_ok=True)


def put(path: Path, text: str):
    """Write a file that other hosts may be writing too, with the same in it."""
    try:
        with atomic.replacing(path) as temporary:
            temporary.write_text(text)
    except FileNotFoundError:  # a host whose process has the same number was sooner
        if not path.exists():
            raise


def positions(path: Path, records: Sequence[tuple[int, bytes]]) -> list[list[int]]:
    """Where records lie in a shard's stream without block headers: found by their beginnings, in order.

    Args:
      path: of the shard.
      records: `(size, beginning)` of each.

    Returns:
      `[position, size]` of each.

    Raises:
      DataError: one is not there.
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
