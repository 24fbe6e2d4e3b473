"""Where a run's checkpoints lie: a folder per step, on file systems that Orbax writes to."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import orbax.checkpoint as ocp

DAMAGED = "damaged_checkpoints"  # beside the folder of checkpoints
HANDLERS = {"state": ocp.StandardCheckpointHandler, "run": ocp.JsonCheckpointHandler}


class StepFolders:
    """The folders under `directory` that are called as steps.

    Args:
      directory: made when something is written.
    """

    def __init__(self, directory: Path):
        self._directory = directory

    def steps(self) -> list[int]:
        """The steps of finished checkpoints, ascending; OSError where the directory cannot be looked into."""
        try:
            # What is not finished has another name.
            return sorted(int(child.name) for child in self._directory.iterdir() if _is_step(child))
        except FileNotFoundError:
            return []

    def read(self, step: int, name: str) -> str:
        """A file of a step; OSError or ValueError where it cannot be read."""
        return (self._directory / str(step) / name).read_text()

    @contextlib.contextmanager
    def opened(self, step: int) -> Iterator[Path]:
        """The folder of a step, to read arrays from."""
        yield self._directory / str(step)

    def set_aside(self, step: int) -> Path:
        """Move a step's folder to where it is in nobody's way, beside all that were moved there before."""
        target = free_place(self._directory.parent / DAMAGED, step)
        target.parent.mkdir(exist_ok=True)
        (self._directory / str(step)).rename(target)
        return target

    def writer(self, kept: Callable[[list[int]], set[int]], still_ours: Callable[[], bool]) -> ocp.CheckpointManager:
        """What writes steps in the background, and afterwards removes those that are not kept.

        Args:
          kept: which of given steps are.
          still_ours: whether what is left of writes that were cut off may be removed.
        """
        del still_ours  # a folder under another run's lock is found out before this
        self._directory.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Kept(kept), cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        handlers = {name: handler() for name, handler in HANDLERS.items()}
        return ocp.CheckpointManager(self._directory.absolute(), options=options, item_handlers=handlers)

    def unfinished(self, step: int) -> list[Path]:
        """What a write of `step` that has failed has left."""
        return list(self._directory.glob(f"{step}.orbax-checkpoint-tmp*"))


def free_place(folder, step: int):
    """A path for `step` in a folder that has nothing there: `<step>`, `<step>.1` and so on."""
    names = itertools.chain([str(step)], (f"{step}.{i}" for i in itertools.count(1)))
    return next(folder / name for name in names if not (folder / name).exists())


class _Kept(ocp.checkpoint_managers.PreservationPolicy):
    """Which checkpoints Orbax keeps."""

    def __init__(self, kept):
        self._kept = kept

    def should_preserve(self, checkpoints, *, context):
        del context
        steps = [info.step for info in checkpoints]
        kept = self._kept(steps)
        return [step in kept for step in steps]


def _is_step(folder):
    return folder.name.isdigit() and folder.is_dir()
