"""The lock of a workdir in a bucket: an object that each heartbeat writes again."""

import contextlib
import dataclasses
import json
import secrets
from pathlib import Path

from audiovae_jax.errors import ConfigError
from audiovae_jax.run.workdir_lock import WorkdirLock, read_holder
from audiovae_jax.storage.bucket_path import BucketPath, as_path

_PATIENCE = 5.0  # seconds; the next heartbeat retries


def as_workdir(workdir: Path | BucketPath | str) -> Path | BucketPath:
    """Return a workdir as a path; raises ConfigError for URLs that are not writable."""
    try:
        return as_path(workdir)
    except OSError as error:
        raise ConfigError(f"--workdir={workdir}: {error.strerror}") from error


def lock_of(workdir: Path | BucketPath, enabled: bool = True) -> WorkdirLock:
    """Return the lock of a workdir, on disk or in a bucket."""
    return (BucketLock if isinstance(workdir, BucketPath) else WorkdirLock)(workdir, enabled)


class BucketLock(WorkdirLock):
    """`WorkdirLock` for a workdir in a bucket.

    If the server supports conditional writes, the object is created or taken over only if no other run did so
    meanwhile. S3 supports both, Google Cloud Storage only creation. Elsewhere, two runs that start at the same moment
    may both succeed. The one that was overwritten finds out at its next heartbeat, and ends.
    """

    def __init__(self, workdir: BucketPath, enabled: bool = True):
        super().__init__(workdir, enabled)
        self._object = self._path.patient(_PATIENCE)
        self._beats = 0

    def _create(self):
        text = json.dumps(dataclasses.asdict(self._me))
        taken_from = None
        try:
            self._path.create(text)
        except FileExistsError:
            taken_from = self._take_over(text)
        holder = read_holder(self._path)
        if holder is None or holder.token != self._me.token:
            self._require_dead(holder, 0.0)
        return taken_from

    def _take_over(self, text):
        """Replace a dead run's object, and return its holder.

        Raises:
          ConfigError: the run is alive, or another run was faster.
        """
        try:
            version, holder = self._path.version(), read_holder(self._path)
            self._require_dead(holder, self._silence())
            self._path.replace(text, version)
        except (FileNotFoundError, FileExistsError) as error:
            raise ConfigError(
                f"--workdir={self._workdir} is being locked by another run at this moment; use another"
            ) from error
        return holder

    def _silence(self):
        probe = self._workdir / f".{secrets.token_hex(4)}.tmp"
        probe.write_text("")
        try:
            return probe.modified() - self._path.modified()
        finally:
            probe.unlink(missing_ok=True)

    def _touch(self):
        version, holder = self._object.version(), read_holder(self._object)
        if holder is not None and holder.token == self._me.token:
            self._beats += 1
            # Spaces change the version, so that a run that has read the previous one cannot replace it.
            text = json.dumps(dataclasses.asdict(holder)) + " " * (self._beats % 60)
            with contextlib.suppress(FileExistsError):  # the next check detects a lost lock
                self._object.replace(text, version)

    def _refresh(self):
        try:
            holder = read_holder(self._object)
            self._check_holder(holder, gone=holder is None and not self._object.exists())
        except OSError:
            return  # the server may be away for a moment

    def _remove(self):
        with contextlib.suppress(OSError):  # if this fails, the lock becomes stale
            holder = read_holder(self._object)
            if holder is not None and holder.token == self._me.token:
                self._object.unlink(missing_ok=True)
