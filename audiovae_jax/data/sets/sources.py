"""Opening the data set at `config.data.root`, whose kind is detected or given."""

from collections.abc import Callable, Sequence
from pathlib import Path

from audiovae_jax.data.audio import files, remote
from audiovae_jax.data.sets import folder, gtzan, manifest, musdb18, probing, shards, webdataset
from audiovae_jax.data.sets.catalog import Catalog
from audiovae_jax.errors import ConfigError, RootError

AUTO = "auto"
# By name: a function that recognises a root, and one that scans it. The first kind that recognises a root is used.
_KINDS: dict[str, tuple[Callable, Callable]] = {
    "manifest": (
        lambda root, options: root.lower().endswith(manifest.SUFFIXES),
        lambda root, options, c: manifest.scan(root, options, c.validation_fraction),
    ),
    "shards": (shards.is_shards, lambda root, options, c: shards.scan(root, options)),
    "musdb18": (
        lambda root, options: not root.endswith(_FILES) and musdb18.recognise(root, options) is not None,
        lambda root, options, c: musdb18.scan(root, options, c.mixture_share),
    ),
    "gtzan": (
        lambda root, options: not root.endswith(_FILES) and gtzan.genres_folder(root, options) is not None,
        lambda root, options, c: gtzan.scan(root, options),
    ),
    "webdataset": (
        lambda root, options: bool(webdataset.archives(root, options).files),
        lambda root, options, c: webdataset.scan(root, options, c.validation_fraction),
    ),
    "folder": (
        lambda root, options: True,
        lambda root, options, c: folder.scan(root, options, c.validation_fraction),
    ),
}
_FILES = (*manifest.SUFFIXES, ".tar")  # roots that are files
NAMES = (AUTO, *_KINDS)


def split_roots(text: str) -> list[str]:
    """Split the comma-separated roots of `config.data.root`.

    An existing path that contains commas is a single root.

    Raises:
      ConfigError: a root is empty.
    """
    if "," not in text or (not remote.is_url(text) and Path(remote.local_path(text)).exists()):
        return [text]
    roots = [root.strip() for root in text.split(",")]
    if not all(roots):
        raise ConfigError(f"{text!r} has a root with no name; write DIR,DIR as config.data.root or data.val_root")
    return roots


def place(root: str) -> Path | str:
    """Return a root's place for comparison: a URL as written, or the resolved path."""
    return root.rstrip("/") if remote.is_url(root) else Path(remote.local_path(root)).resolve()


def within(root: str, others: Sequence[str]) -> list[Path | str]:
    """Return the places of other roots that are under `root`."""
    start = f"{str(place(root)).rstrip('/')}/"
    return [there for there in map(place, others) if str(there).startswith(start)]


def open_root(root: str, source: str, options: probing.Options, config) -> Catalog:
    """Open the data set at a root.

    Args:
      root: a folder, a manifest, tars, or a URL of one of them.
      source: its kind, one of `NAMES`. "auto" detects it.
      options: of probing.
      config: the section `config.data`.

    Raises:
      ConfigError: the kind is unknown.
      DataError: there is no usable audio.
    """
    if source not in NAMES:
        raise ConfigError(f"config.data.source={source!r} must be one of {', '.join(NAMES)}")
    if remote.is_url(root):
        options.access.filesystem(root)  # errors about the scheme then name the root, not a file under it
    if root.lower().endswith(files.COMPRESSED_TARS):
        raise RootError(root, files.why_unread(root))
    if source == AUTO:
        if not remote.is_url(root) and not Path(remote.local_path(root)).exists() and "{" not in root:
            raise RootError(root, "there is no such folder")
        if not remote.is_url(root) and not root.lower().endswith(_FILES) and Path(remote.local_path(root)).is_file():
            suffixes = " or ".join(manifest.SUFFIXES)
            raise RootError(root, f"is a file; give its folder, or a manifest ({suffixes}) that lists it")
        source = next(name for name, (recognises, _) in _KINDS.items() if recognises(root, options))
    return _KINDS[source][1](root, options, config)
