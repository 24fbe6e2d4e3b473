"""`metrics.jsonl` of a workdir: a run's scalars and remarks, one record per line."""

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from audiovae_jax.run.tracking.writer import Writer
from audiovae_jax.storage.bucket_path import BucketPath

NAME = "metrics.jsonl"
_AGAIN_AFTER = 60.0  # seconds from a failure until the next attempt
_PATIENCE = 10.0  # seconds that training waits for a bucket
_BYTES_A_SECOND = 1e5  # average upload rate to a bucket


class JsonLines(Writer):
    """Appends records atomically.

    Args:
      workdir: folder of the file. In a bucket, the file is uploaded from time to time, and at the end.
      first_step: records of earlier sessions from this step on are removed.
      warn: called with a line of text when writing fails, and when it works again.
    """

    def __init__(self, workdir: Path | BucketPath, first_step: int, warn: Callable[[str], None]):
        self._warn = warn
        self._file: int | None = None
        self._failed_at: float | None = None
        self._object: BucketPath | None = None
        self._put_at = -math.inf
        if isinstance(workdir, BucketPath):
            self._object = workdir.patient(_PATIENCE) / NAME
            self._local = tempfile.TemporaryDirectory(prefix="audiovae_jax_metrics_")
            workdir = Path(self._local.name)
            if first_step > 0:
                self._attempt(lambda: self._object.exists() and self._object.download_file(workdir / NAME))
            if self._failed_at is not None:  # do not overwrite an object that could not be downloaded
                self._object = self._object.parent / f"{Path(NAME).stem}.from_{first_step}.jsonl"
                self._failed_at = None
        self._path = workdir / NAME
        self.restart(first_step)

    def restart(self, first_step: int):
        """Remove earlier records from `first_step` on."""

        def cut():
            if self._path.exists():
                os.truncate(self._path, _end_before(self._path, first_step))

        self._attempt(cut)

    def scalars(self, values: dict[str, float], step: int):
        """Record scalars; NaN and infinity, which JSON lacks, become strings."""
        self._append({"step": step, "time": time.time(), "scalars": {name: _plain(v) for name, v in values.items()}})

    def text(self, name: str, text: str, step: int):
        """Record a line of text."""
        self._append({"step": step, "time": time.time(), "name": name, "text": text})

    def flush(self):
        """Sync the file to disk, and upload it to a bucket if enough time has passed.

        Each upload sends the whole file, so that larger files are uploaded less often.
        """
        if self._file is not None:
            self._attempt(lambda: os.fsync(self._file))
            pause = os.fstat(self._file).st_size / _BYTES_A_SECOND
            if self._object is not None and time.monotonic() - self._put_at > pause:
                self._put_at = time.monotonic()
                self._attempt(lambda: self._object.upload_file(self._path))

    def close(self, finished):
        """Flush, and close the file."""
        if self._file is not None:
            self._put_at = -math.inf
            self.flush()
            os.close(self._file)
            self._file = None
        if self._object is not None:
            self._local.cleanup()

    def _append(self, record):
        line = json.dumps(record, allow_nan=False).encode() + b"\n"

        def write():
            if self._file is None:
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            before = os.fstat(self._file).st_size
            written = os.write(self._file, line)
            if written < len(line):
                os.ftruncate(self._file, before)
                raise OSError(28, "No space left on device")

        self._attempt(write)

    def _attempt(self, action):
        if self._failed_at is not None and time.monotonic() - self._failed_at < _AGAIN_AFTER:
            return
        try:
            action()
        except OSError as error:
            first = self._failed_at is None
            self._failed_at = time.monotonic()
            if first:  # warn after changing the state, since warnings are recorded too
                self._warn(f"warning: writing {NAME} failed, and is retried later: {error.strerror or error}")
        else:
            if self._failed_at is not None:
                self._failed_at = None
                self._warn(f"{NAME} is written again")


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Iterate over the records of a `metrics.jsonl`, without corrupt lines."""
    with path.open("rb") as lines:
        for line in lines:
            record = _parsed(line)
            if record is not None:
                yield record


def _end_before(path, first_step):
    """Return where to cut the file: before `first_step`, or an incomplete line."""
    end = 0
    with path.open("rb") as lines:
        for line in lines:
            record = _parsed(line)
            if not line.endswith(b"\n") or (record is not None and record["step"] >= first_step):
                break
            end += len(line)
    return end


def _parsed(line):
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def _plain(value):
    value = float(value)
    return value if math.isfinite(value) else str(value)
