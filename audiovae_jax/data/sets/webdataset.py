"""WebDataset shards: tar files of audio, read with random access.

Files of one tar belong to one sample if their names are equal up to the first dot of the base name: `a/x.mix.wav` and
`a/x.vocals.wav` are both of `a/x`. The files of a sample are on one side of the split.
"""

import collections
import dataclasses
import io
import re
import tarfile
from pathlib import Path

from audiovae_jax.data.audio import audio_file, files, remote
from audiovae_jax.data.audio.audio_file import Place
from audiovae_jax.data.audio.section import Section
from audiovae_jax.data.sets import catalog, folder, probing
from audiovae_jax.data.sets.catalog import Catalog
from audiovae_jax.errors import DataError, RootError, printable

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def archives(root: str, options: probing.Options) -> probing.Found:
    """Find the tars at a root, and the compressed ones, which are ignored.

    The root is a folder, a tar, or a pattern like `DIR/part-{0000..0015}.tar`.

    Raises:
      DataError: a named tar does not exist.
    """
    if root.endswith(".tar"):
        return probing.Found([(Path(name).name, _tar(name, options)) for name in _expand(root)], [])
    if remote.is_url(root) or Path(remote.local_path(root)).is_dir():
        return probing.find(root, options, (".tar",))
    return probing.Found([], [])


def scan(root: str, options: probing.Options, validation_fraction: float) -> Catalog:
    """Scan the audio in tar files.

    Each member is a track, and those of a sample are a group. The headers of a tar are read one after another. Results
    of probing its members are cached.

    Raises:
      DataError: there is no tar with audio, or no member can be used.
    """
    tars = archives(root, options)
    found, skipped, ignored = [], [], list(tars.ignored)
    for name, place in tars.files:
        try:
            listed = members(place)
            left_out = files.ignored((_without_dot(member.name) for member in listed), audio_file.EXTENSIONS)
            ignored += [(f"{printable(place)}/{member}", reason) for member, reason in left_out.items()]
            found += [(f"{name}/{member.name}", member) for member in listed if _is_audio(member)]
        except remote.UnreachableError:
            raise
        except (tarfile.TarError, OSError, DataError) as error:
            skipped.append((printable(place), f"not a tar that can be read ({error})"))
    if not found and not skipped:
        reasons = "".join(f"\n  {line}" for line in catalog.summary(ignored))
        raise RootError(root, f"contains no tar file with audio{reasons}")
    found = _as_one_folder(found)
    tracks, unusable = folder.usable(root, found, options)
    skipped += unusable
    catalog.require_tracks(tracks, skipped, root)
    samples = collections.Counter(_sample(key) for key, _ in found)
    tracks = [
        dataclasses.replace(track, group=_sample(track.key)) if samples[_sample(track.key)] > 1 else track
        for track in tracks
    ]
    return catalog.split_by_hash(tracks, skipped, f"files in the tars of {root}", validation_fraction, ignored)


def members(place: Place) -> list[Section]:
    """List the files in a tar."""
    with _opened(place) as f:
        try:
            with tarfile.open(fileobj=f, mode="r:") as archive:
                return [
                    Section(place, member.offset_data, member.size, member.name) for member in archive if member.isreg()
                ]
        finally:
            # tarfile takes a failed fetch for the end of the archive.
            if getattr(f, "raw", None) is not None and getattr(f.raw, "error", None) is not None:
                raise f.raw.error


def _is_audio(member):
    return files.is_read(_without_dot(member.name), audio_file.EXTENSIONS)


def _without_dot(name):
    return name.removeprefix("./")  # as `tar -cf x.tar .` stores it


def _sample(key):
    """Return WebDataset's key of a file.

    It is the name up to the first dot of the base name. Names such as `blues.00000.wav` and `Dr. Dre.wav` are not parts
    of one sample.
    """
    folder_name, _, base = key.rpartition("/")
    name, _, rest = base.partition(".")
    part = rest.rpartition(".")[0]
    return key if part.isdigit() or part.startswith(" ") else f"{folder_name}/{name}"


def _opened(place):
    return place.open("rb") if isinstance(place, Path) else io.BufferedReader(place.open(), 1 << 16)


def _as_one_folder(found):
    """Sort members like the folder that was packed.

    If the names of members are unique, they replace the keys, without the tar's name.
    """
    if len({section.name for _, section in found}) == len(found):
        found = [(_without_dot(section.name), section) for _, section in found]
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
