"""Storage of checkpoints on file systems that Orbax supports: a folder per step."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import orbax.checkpoint as ocp

DAMAGED = "damaged_checkpoints"  # beside the folder of checkpoints
HANDLERS = {"state": ocp.StandardCheckpointHandler, "run": ocp.JsonCheckpointHandler}


class StepFolders:
    """The folders under `directory` that are named by their step.

    Args:
      directory: created by the first write.
    """

    def __init__(self, directory: Path):
        self._directory = directory

    def steps(self) -> list[int]:
        """Return the steps of finished checkpoints, ascending.

        Raises:
          OSError: the directory cannot be listed.
        """
        try:
            # Unfinished checkpoints have other names.
            return sorted(int(child.name) for child in self._directory.iterdir() if _is_step(child))
        except FileNotFoundError:
            return []

    def read(self, step: int, name: str) -> str:
        """Read a text file of a step; raises OSError or ValueError if this fails."""
        return (self._directory / str(step) / name).read_text()

    @contextlib.contextmanager
    def opened(self, step: int) -> Iterator[Path]:
        """A context with the folder of a step, to read arrays from."""
        yield self._directory / str(step)

    def set_aside(self, step: int) -> Path:
        """Move a step's folder to an unused name in `damaged_checkpoints/`; return it."""
        target = free_place(self._directory.parent / DAMAGED, step)
        target.parent.mkdir(exist_ok=True)
        (self._directory / str(step)).rename(target)
        return target

    def writer(self, kept: Callable[[list[int]], set[int]], still_ours: Callable[[], bool]) -> ocp.CheckpointManager:
        """Return a manager that writes steps in the background and removes old ones.

        Args:
          kept: returns the subset of the given steps to keep.
          still_ours: returns whether leftovers of interrupted writes may be removed; not used here.
        """
        del still_ours  # another run's lock on the folder is detected earlier
        self._directory.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Kept(kept), cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        handlers = {name: handler() for name, handler in HANDLERS.items()}
        return ocp.CheckpointManager(self._directory.absolute(), options=options, item_handlers=handlers)

    def unfinished(self, step: int) -> list[Path]:
        """Return the leftovers of failed writes of `step`."""
        return list(self._directory.glob(f"{step}.orbax-checkpoint-tmp*"))


def free_place(folder, step: int):
    """Return the first unused path in a folder: `<step>`, `<step>.1` and so on."""
    names = itertools.chain([str(step)], (f"{step}.{i}" for i in itertools.count(1)))
    return next(folder / name for name in names if not (folder / name).exists())


class _Kept(ocp.checkpoint_managers.PreservationPolicy):
    """Orbax policy that keeps the steps which `kept` selects."""

    def __init__(self, kept):
        self._kept = kept

    def should_preserve(self, checkpoints, *, context):
        del context
        steps = [info.step for info in checkpoints]
        kept = self._kept(steps)
        return [step in kept for step in steps]


def _is_step(folder):
    return folder.name.isdigit() and folder.is_dir()
