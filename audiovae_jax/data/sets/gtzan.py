"""GTZAN (Tzanetakis and Cook, 2002): a folder per genre of half a minute each, wav or au."""

from pathlib import Path

from audiovae_jax.data.audio import remote
from audiovae_jax.data.sets import catalog, folder, probing
from audiovae_jax.data.sets.catalog import Catalog
from audiovae_jax.errors import DataError

GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")
_FOLDERS = ("genres", "genres_original")


def genres_folder(root: str, options: probing.Options) -> str | None:
    """The folder under `root` that holds the genres, "" for `root` itself; None if it is no GTZAN."""
    if remote.is_url(root):
        folders = {name.rpartition("/")[0] for name, _ in remote.list_files(root, options.access)}
    else:
        base = Path(remote.local_path(root))
        candidates = [f"{name}/{genre}".lstrip("/") for name in (*_FOLDERS, "") for genre in GENRES]
        folders = {name for name in candidates if (base / name).is_dir()}
    for candidate in (*_FOLDERS, ""):
        if sum(f"{candidate}/{genre}".lstrip("/") in folders for genre in GENRES) >= 2:
            return candidate
    return None


def scan(root: str, options: probing.Options) -> Catalog:
    """Of every genre's files, sorted by name, 80 % to train on, 10 % to validate on, and 10 % held out.

    Raises:
      DataError: it is not laid out so, or nothing can be used.
    """
    base = genres_folder(root, options)
    if base is None:
        raise DataError(f"config.data.root={root} is no GTZAN: no {' or '.join(_FOLDERS)} with a folder per genre")
    found = probing.find_under(root, base, options)
    tracks, skipped = folder.usable(root, found, options)
    catalog.require_tracks(tracks, skipped, root)
    kept = {track.key: track for track in tracks}
    train, validation = [], []
    for genre in sorted({key.partition("/")[0] for key, _ in found}):
        # Of all files, readable or not, so that a broken one moves no other to another side.
        names = [key for key, _ in found if key.partition("/")[0] == genre]
        first, second = len(names) * 8 // 10, len(names) * 9 // 10
        train += [kept[name] for name in names[:first] if name in kept]
        validation += [kept[name] for name in names[first:second] if name in kept]
    if not train or not validation:
        raise DataError(f"config.data.root={root}: a genre needs ten files or so, to be split 80/10/10")
    origin = f"files of GTZAN under {root}"
    return Catalog(tuple(train), tuple(validation), tuple(skipped), catalog.fingerprint(train + validation), origin)
