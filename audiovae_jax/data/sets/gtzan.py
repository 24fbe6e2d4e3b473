"""GTZAN (Tzanetakis and Cook, 2002): a folder per genre of 30 s clips, wav or au."""

from pathlib import Path

from audiovae_jax.data.audio import remote
from audiovae_jax.data.sets import catalog, folder, probing
from audiovae_jax.data.sets.catalog import Catalog
from audiovae_jax.errors import RootError

GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")
_FOLDERS = ("genres", "genres_original")


def genres_folder(root: str, options: probing.Options) -> str | None:
    """Return the folder of genres under `root`, "" for `root`, None if not GTZAN."""
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
    """Scan GTZAN, with 80 % for training, 10 % for validation and 10 % held out.

    The files of each genre are split in the order of their names.

    Raises:
      DataError: the layout is not GTZAN's, or no file can be used.
    """
    base = genres_folder(root, options)
    if base is None:
        raise RootError(root, f"is not GTZAN: it has no {' or '.join(_FOLDERS)} with a folder per genre")
    found = probing.find_under(root, base, options)
    tracks, skipped = folder.usable(root, found.files, options)
    catalog.require_tracks(tracks, skipped, root)
    kept = {track.key: track for track in tracks}
    train, validation = [], []
    for genre in sorted({key.partition("/")[0] for key, _ in found.files}):
        # Count unreadable files too, so that a corrupt file does not change the split of others.
        names = [key for key, _ in found.files if key.partition("/")[0] == genre]
        first, second = len(names) * 8 // 10, len(names) * 9 // 10
        train += [kept[name] for name in names[:first] if name in kept]
        validation += [kept[name] for name in names[first:second] if name in kept]
    if not train or not validation:
        raise RootError(root, "a genre needs ten files or so, to be split 80/10/10")
    return catalog.of_sides(train, validation, skipped, f"files of GTZAN under {root}", found.ignored)
