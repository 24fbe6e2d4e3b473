"""Where a run's checkpoints lie: in a bucket, with the same names as on disk.

Orbax writes no s3://, and its gs:// takes Google's own libraries. Moreover a bucket renames nothing, so that what
Orbax does at the end of a write would be seen half done. So a step is written to this machine's disk, and put into
the bucket whole: `commit_success.txt` comes last, is what makes it a checkpoint, and is the first to go. The state is
the same on all devices, so that the first process has all of it.
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
    """The steps under `directory`, as `StepFolders` has them."""

    def __init__(self, directory: BucketPath):
        self._directory = directory

    def steps(self) -> list[int]:
        """The steps of whole checkpoints, ascending."""
        found = (name.split("/") for name in self._directory.files())
        return sorted(int(parts[0]) for parts in found if parts[0].isdigit() and parts[1:] == [_MARKER])

    def read(self, step: int, name: str) -> str:
        """An object of a step; OSError or ValueError where it cannot be read."""
        return (self._directory / str(step) / name).read_text()

    @contextlib.contextmanager
    def opened(self, step: int) -> Iterator[Path]:
        """A copy of a step on this machine's disk, for as long as it is open."""
        with tempfile.TemporaryDirectory(prefix="audiovae_jax_") as folder:
            copy = Path(folder) / str(step)
            (self._directory / str(step)).download(copy)
            yield copy

    def set_aside(self, step: int) -> BucketPath:
        """Copy a step to where it is in nobody's way, and only then remove it here."""
        source, target = self._directory / str(step), free_place(self._directory.parent / DAMAGED, step)
        source.copy_tree(target, last=_MARKER)
        source.remove_tree(first=_MARKER)
        return target

    def writer(self, kept: Callable[[list[int]], set[int]], still_ours: Callable[[], bool]) -> "Uploads":
        """As `StepFolders.writer`."""
        return Uploads(self._directory, self.steps, kept, still_ours)

    def unfinished(self, step: int) -> list:
        """Nothing: what was not put there whole is no checkpoint, and the next write of the step replaces it."""
        return []


class Uploads:
    """Writes steps to this machine's disk and puts them into a bucket, in the background.

    It has those methods of Orbax's manager that `Checkpoints` calls. Only the first process does anything.
    """

    def __init__(self, directory, steps, kept, still_ours):
        self._directory, self._steps, self._kept, self._still_ours = directory, steps, kept, still_ours
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, step: int, args: ocp.args.Composite, force: bool = True):
        """Begin; the arrays may be donated afterwards."""
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
        """Whether something is on its way."""
        return self._thread is not None and self._thread.is_alive()

    def wait_until_finished(self):
        """Until the step is in the bucket; raises what has gone wrong, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self):
        """Finish."""
        self.wait_until_finished()

    def _finish(self, manager, folder, step):
        try:
            manager.wait_until_finished()
            manager.close()
            self._upload(folder / str(step), self._directory / str(step))
            with contextlib.suppress(OSError):  # what is too many goes with the next one
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
            raise OSError("the workdir is another run's by now")
        (folder / _MARKER).unlink(missing_ok=True)
        target.remove_tree(first=_MARKER)
        target.upload(folder)
        (target / _MARKER).write_text("all objects of this checkpoint are there\n")
