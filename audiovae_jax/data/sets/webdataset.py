"""WebDataset shards: tar files of audio, read with random access."""

import io
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

from audiovae_jax.data.audio import audio_file, remote
from audiovae_jax.data.audio.audio_file import Place
from audiovae_jax.data.audio.section import Section
from audiovae_jax.data.sets import catalog, folder, probing
from audiovae_jax.data.sets.catalog import Catalog
from audiovae_jax.errors import DataError, RootError, printable

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def archives(root: str, options: probing.Options) -> list[tuple[str, Place]]:
    """Return `(name, tar file)` of the tars at a root; empty if there are none.

    The root is a folder, a tar, or a pattern like `DIR/part-{0000..0015}.tar`.

    Raises:
      DataError: a named tar does not exist.
    """
    if root.endswith(".tar"):
        return [(Path(name).name, _tar(name, options)) for name in _expand(root)]
    if remote.is_url(root) or Path(remote.local_path(root)).is_dir():
        return probing.find(root, options, (".tar",))
    return []


def scan(root: str, options: probing.Options, validation_fraction: float) -> Catalog:
    """Scan the audio in tar files; each member is a track.

    The headers of a tar are read one after another. Results of probing its members are cached.

    Raises:
      DataError: there is no tar with audio, or no member can be used.
    """
    found, skipped = [], []
    for name, place in archives(root, options):
        try:
            found += [(f"{name}/{member.name}", member) for member in members(place)]
        except remote.UnreachableError:
            raise
        except (tarfile.TarError, OSError, DataError) as error:
            skipped.append((printable(place), f"not a tar that can be read ({error})"))
    if not found and not skipped:
        raise RootError(root, "holds no tar file with audio")
    found = _as_one_folder(found)
    tracks, unusable = folder.usable(root, found, options)
    skipped += unusable
    catalog.require_tracks(tracks, skipped, root)
    return catalog.split_by_hash(tracks, skipped, f"files in the tars of {root}", validation_fraction)


def members(place: Place, extensions: Sequence[str] = audio_file.EXTENSIONS) -> list[Section]:
    """List the audio files in a tar."""
    with _opened(place) as f:
        try:
            with tarfile.open(fileobj=f, mode="r:") as archive:
                return [
                    Section(place, member.offset_data, member.size, member.name)
                    for member in archive
                    if member.isreg() and member.name.lower().endswith(tuple(extensions))
                ]
        finally:
            # tarfile takes a failed fetch for the end of the archive.
            if getattr(f, "raw", None) is not None and getattr(f.raw, "error", None) is not None:
                raise f.raw.error


def _opened(place):
    return place.open("rb") if isinstance(place, Path) else io.BufferedReader(place.open(), 1 << 16)


def _as_one_folder(found):
    """Sort members like the folder that was packed.

    If the names of members are unique, they replace the keys, without the tar's name.
    """
    if len({section.name for _, section in found}) == len(found):
        found = [(section.name.removeprefix("./"), section) for _, section in found]
    return sorted(found, key=lambda pair: Path(pair[0]))


def _expand(root):
    match = _RANGE.search(root)
    if match is None:
        return [root]
    first, last = match.groups()
    numbers = range(int(first), int(last) + 1)
    return [f"{root[: match.start()]}{i:0{len(first)}d}{root[match.end() :]}" for i in numbers]


def _tar(name, options):
    if remote.is_url(name):
        return remote.open_url(name, options.access)
    path = Path(remote.local_path(name))
    if not path.is_file():
        raise DataError(f"config.data.root: {name}: there is no such file")
    return path
