"""A folder of audio files, here or behind a URL."""

from audiovae_jax.data import audio_file, files
from audiovae_jax.datasets import catalog, probing
from audiovae_jax.datasets.catalog import Catalog, Track
from audiovae_jax.errors import DataError


def scan(root: str, options: probing.Options, validation_fraction: float) -> Catalog:
    """The audio files under `root`, at any depth.

    Which side of the split a file is on depends on its own relative path.

    Raises:
      DataError: there is no such folder, or it holds nothing that can be used.
    """
    found = probing.find(root, options)
    if not found:
        raise DataError(
            f"config.data.root={root} holds no audio file; looked for {' '.join(audio_file.EXTENSIONS)} at any depth"
        )
    tracks, skipped = usable(root, found, options)
    catalog.require_tracks(tracks, skipped, root)
    train, validation = catalog.by_hash(tracks, validation_fraction)
    mark = catalog.fingerprint(tracks, validation_fraction)
    return Catalog(tuple(train), tuple(validation), tuple(skipped), mark, f"files under {root}")


def usable(root: str, found, options: probing.Options) -> tuple[list[Track], list[tuple[str, str]]]:
    """`(tracks, (name, reason) of what cannot be used)` of `(key, file)` pairs."""
    tracks, skipped = [], []
    probed = probing.probe(root, [place for _, place in found], options)
    for (key, place), result in zip(found, probed, strict=True):
        if isinstance(result, str):
            skipped.append((files.printable(place), result))
        else:
            tracks.append(Track(key, result))
    return tracks, skipped
