"""What a user's path means: a workdir, its checkpoints, one of them, or a file; here or behind a URL."""

import os
from pathlib import Path

from audiovae_jax.data.audio_file import EXTENSIONS
from audiovae_jax.errors import CheckpointError
from audiovae_jax.storage import atomic, server
from audiovae_jax.storage.bucket_path import BucketPath, as_path


def locate(path: str | Path | BucketPath) -> tuple[Path | BucketPath, int | None]:
    """The checkpoint folder and step that a user's path means.

    Args:
      path: a workdir, its `checkpoints` folder, or one step's folder; or the URL of one.

    Returns:
      `(folder of checkpoints, step)`; None for the newest step.

    Raises:
      CheckpointError: there is no checkpoint there.
    """
    given = opened_path(path)
    if not given.exists():
        raise CheckpointError(f"{path}: there is no such file or folder")
    if given.name.isdigit() and (given / "state").is_dir():
        return given.parent, int(given.name)
    for folder in (given / "checkpoints", given):
        if folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir()):
            return folder, None
    raise CheckpointError(
        f"{path} holds no checkpoint; give a training workdir, one of its checkpoints/<step>, or a saved model"
    )


def opened_path(path: str | Path | BucketPath) -> Path | BucketPath:
    """A user's path to read from; CheckpointError where it is a URL that cannot be reached.

    A folder that is being replaced is waited for.
    """
    try:
        path = as_path(path)
        if isinstance(path, BucketPath):
            path.exists()
        else:
            atomic.await_swap(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    return path


def may_be_model(path: str) -> bool:
    """Whether a model could be at a user's path; only where it is certain that none is, it is not."""
    if server.is_url(path):
        return True
    if not os.path.isdir(path):
        return os.path.isfile(path) and Path(path).suffix.lower() not in EXTENSIONS
    names = os.listdir(path)
    return any(name in ("model.json", "checkpoints", "state") or name.isdigit() for name in names)
