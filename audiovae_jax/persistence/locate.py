"""Resolves a user's path or URL to a checkpoint folder and step."""

from pathlib import Path

from audiovae_jax.errors import CheckpointError
from audiovae_jax.storage import atomic
from audiovae_jax.storage.bucket_path import BucketPath, as_path


def locate(path: str | Path | BucketPath) -> tuple[Path | BucketPath, int | None]:
    """Return the checkpoint folder and step that a user's path refers to.

    Args:
      path: a workdir, its `checkpoints` folder or the folder of one step; or the URL of one of these.

    Returns:
      `(folder of checkpoints, step)`; the step is None unless the path names one.

    Raises:
      CheckpointError: there is no checkpoint at `path`.
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
    """Return a user's path as a `Path` or `BucketPath` to read from.

    If the folder is just being replaced, this waits for its replacement.

    Raises:
      CheckpointError: the path is a URL that cannot be reached.
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
