"""MUSDB18-HQ (Rafii et al., 2017): songs with their mixture and four stems."""

import fnmatch
from pathlib import Path

from audiovae_jax.data.audio import files, remote
from audiovae_jax.data.sets import catalog, folder, probing
from audiovae_jax.data.sets.catalog import Catalog, Track
from audiovae_jax.errors import RootError

STEMS = ("drums", "bass", "other", "vocals")
# The songs of `train/` that the published split (musdb's mus.yaml) uses for validation.
VALIDATION_SONGS = (
    "Actions - One Minute Smile",
    "Clara Berry And Wooldog - Waltz For My Victims",
    "Johnny Lokke - Promises & Lies",
    "Patrick Talbot - A Reason To Leave",
    "Triviul - Angelsaint",
    "Alexander Ross - Goodbye Bolero",
    "Fergessen - Nos Palpitants",
    "Leaf - Summerghost",
    "Skelpolu - Human Mistakes",
    "Young Griffo - Pennies",
    "ANiMAL - Rockshow",
    "James May - On The Line",
    "Meaxic - Take A Step",
    "Traffic Experiment - Sirens",
)
_LAYOUTS = (("wav", "train/*/mixture.wav"), ("mp4", "train/*.stem.mp4"))


def recognise(root: str, options: probing.Options) -> str | None:
    """Return `"wav"` for MUSDB18-HQ, `"mp4"` for MUSDB18 as published, else None."""
    if remote.is_url(root):
        names = [name for name, _ in remote.list_files(root, options.access)]
    else:
        base = Path(remote.local_path(root))
        found = (path for _, pattern in _LAYOUTS for path in base.glob(pattern))
        names = [path.relative_to(base).as_posix() for path in found]
    names = [name for name in names if files.hidden(name) is None]
    return next((kind for kind, pattern in _LAYOUTS if fnmatch.filter(names, pattern)), None)


def scan(root: str, options: probing.Options, mixture_share: float) -> Catalog:
    """Scan the songs of `train/` in a folder of MUSDB18-HQ.

    `mixture_share` of the training crops are from mixtures. The others are from the four stems, equally often.
    Validation uses the mixtures of the official validation songs. `test/` is not used.

    Args:
      root: the folder that contains `train/`.
      options: of probing.
      mixture_share: fraction of the training crops, in 0..1.

    Raises:
      DataError: the layout is not MUSDB18-HQ's, or no file can be used.
    """
    kind = recognise(root, options)
    if kind == "mp4":
        raise RootError(
            root,
            f"contains MUSDB18 as .stem.mp4; convert it with `audiovae-jax convert_musdb18 {root} OUT`, then use OUT",
        )
    if kind is None:
        raise RootError(root, "is not MUSDB18-HQ: there is no train/SONG/mixture.wav")
    names = {"mixture", *STEMS}
    found = probing.find_under(root, "train", options, (".wav",))
    parts = [(key, place) for key, place in found.files if key.count("/") == 1 and Path(key).stem in names]
    tracks, skipped = folder.usable(root, parts, options)
    catalog.require_tracks(tracks, skipped, root)
    weights = {"mixture": mixture_share} | dict.fromkeys(STEMS, (1 - mixture_share) / len(STEMS))
    train, validation = [], []
    for track in tracks:
        song, _, name = track.key.partition("/")
        part = Path(name).stem
        if song in VALIDATION_SONGS:
            if part == "mixture":
                validation.append(track)
        elif weights[part] > 0:
            train.append(Track(track.key, track.audio, weights[part]))
    if not train or not validation:
        raise RootError(root, "no song to train on" if not train else _no_validation())
    origin = f"stems and mixtures of MUSDB18 under {root}"
    return catalog.of_sides(train, validation, skipped, origin, found.ignored)


def _no_validation():
    return f"none of the {len(VALIDATION_SONGS)} official validation songs, such as {VALIDATION_SONGS[0]!r}, exists"
