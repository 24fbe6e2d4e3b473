"""Folders of audio files, on this machine or behind a URL."""

from audiovae_jax import errors
from audiovae_jax.data.audio import audio_file
from audiovae_jax.data.sets import catalog, probing
from audiovae_jax.data.sets.catalog import Catalog, Track
from audiovae_jax.errors import RootError


def scan(root: str, options: probing.Options, validation_fraction: float) -> Catalog:
    """Scan the audio files under `root`, at any depth.

    Files are split by a hash of their relative path.

    Raises:
      DataError: the folder does not exist, or contains no usable file.
    """
    found = probing.find(root, options)
    if not found.files:
        reasons = "".join(f"\n  {line}" for line in catalog.summary(found.ignored))
        suffixes = " ".join(audio_file.EXTENSIONS)
        raise RootError(root, f"contains no audio file; looked for {suffixes} at any depth{reasons}")
    tracks, skipped = usable(root, found.files, options)
    catalog.require_tracks(tracks, skipped, root)
    return catalog.split_by_hash(tracks, skipped, f"files under {root}", validation_fraction, found.ignored)


def usable(root: str, found, options: probing.Options) -> tuple[list[Track], list[tuple[str, str]]]:
    """Probe `(key, file)` pairs, and return the usable tracks and the others.

    Returns:
      `(tracks, skipped)`, where `skipped` has `(name, reason)` of each unusable file.
    """
    tracks, skipped = [], []
    probed = probing.probe(root, [place for _, place in found], options)
    for (key, place), result in zip(found, probed, strict=True):
        if isinstance(result, str):
            skipped.append((errors.printable(place), result))
        else:
            tracks.append(Track(key, result))
    return tracks, skipped
