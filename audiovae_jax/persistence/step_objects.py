"""Storage of a run's checkpoints in a bucket, with the same names as on disk.

Orbax cannot write to s3://, and for gs:// it needs Google's own libraries. Buckets also have no atomic rename, so
readers could see Orbax's commit half done. Therefore a step is written to the local disk and then uploaded. Its last
object is `commit_success.txt`, which marks a finished checkpoint. When a step is removed, this object goes first.

The state is replicated over devices, so the first process has all of it.
"""

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import orbax.checkpoint as ocp

from audiovae_jax.distributed import agreement
from audiovae_jax.persistence.step_folders import DAMAGED, HANDLERS, free_place
from audiovae_jax.storage.bucket_path import BucketPath

_MARKER = "commit_success.txt"


class StepObjects:
    """The steps under `directory`, with the interface of `StepFolders`."""

    def __init__(self, directory: BucketPath):
        self._directory = directory

    def steps(self) -> list[int]:
        """Return the steps of finished checkpoints, ascending."""
        found = (name.split("/") for name in self._directory.files())
        return sorted(int(parts[0]) for parts in found if parts[0].isdigit() and parts[1:] == [_MARKER])

    def read(self, step: int, name: str) -> str:
        """Read a text object of a step; raises OSError or ValueError if this fails."""
        return (self._directory / str(step) / name).read_text()

    @contextlib.contextmanager
    def opened(self, step: int) -> Iterator[Path]:
        """A context with a temporary local copy of a step."""
        with tempfile.TemporaryDirectory(prefix="audiovae_jax_") as folder:
            copy = Path(folder) / str(step)
            (self._directory / str(step)).download(copy)
            yield copy

    def set_aside(self, step: int) -> BucketPath:
        """Move a step to `damaged_checkpoints/`, and return the new path.

        The step is copied there, then removed here.
        """
        source, target = self._directory / str(step), free_place(self._directory.parent / DAMAGED, step)
        source.copy_tree(target, last=_MARKER)
        source.remove_tree(first=_MARKER)
        return target

    def writer(self, kept: Callable[[list[int]], set[int]], still_ours: Callable[[], bool]) -> "Uploads":
        """Return a writer as `StepFolders.writer` does; see there."""
        return Uploads(self._directory, self.steps, kept, still_ours)

    def unfinished(self, step: int) -> list:
        """Return an empty list: the next write of the step replaces a partial upload."""
        return []


class Uploads:
    """Writes steps to the local disk and uploads them to a bucket in the background.

    It has the methods of Orbax's `CheckpointManager` that `Checkpoints` calls. Only the first process writes.
    """

    def __init__(self, directory, steps, kept, still_ours):
        self._directory, self._steps, self._kept, self._still_ours = directory, steps, kept, still_ours
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, step: int, args: ocp.args.Composite, force: bool = True):
        """Start writing a step; the arrays may be donated on return."""
        del force
        self.wait_until_finished()
        if not agreement.is_first():
            return
        folder = tempfile.mkdtemp(prefix="audiovae_jax_checkpoint_")
        try:
            only_here = ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix="upload"
            )
            manager = ocp.CheckpointManager(
                folder,
                options=ocp.CheckpointManagerOptions(multiprocessing_options=only_here, create=False),
                item_handlers={name: handler(multiprocessing_options=only_here) for name, handler in HANDLERS.items()},
            )
            manager.save(step, args=args, force=True)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._thread = threading.Thread(
            target=self._finish, args=(manager, Path(folder), step), name="checkpoint upload", daemon=True
        )
        self._thread.start()

    def is_saving_in_progress(self) -> bool:
        """Return whether a step is being written or uploaded."""
        return self._thread is not None and self._thread.is_alive()

    def wait_until_finished(self):
        """Wait until the step is in the bucket; raises the error of a failed write, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self):
        """Wait for the current write, like `wait_until_finished`."""
        self.wait_until_finished()

    def _finish(self, manager, folder, step):
        try:
            manager.wait_until_finished()
            manager.close()
            self._upload(folder / str(step), self._directory / str(step))
            with contextlib.suppress(OSError):  # old steps that remain are removed after the next write
                self._remove_others()
        except Exception as error:
            self._error = error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _remove_others(self):
        steps = self._steps()
        kept = self._kept(steps)
        for old in steps:
            if old not in kept:
                (self._directory / str(old)).remove_tree(first=_MARKER)

    def _upload(self, folder, target):
        if not self._still_ours():
            raise OSError("the workdir now belongs to another run")
        (folder / _MARKER).unlink(missing_ok=True)
        target.remove_tree(first=_MARKER)
        target.upload(folder)
        (target / _MARKER).write_text("all objects of this checkpoint are there\n")
