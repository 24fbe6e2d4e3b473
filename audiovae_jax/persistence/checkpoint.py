"""Checkpoints of a run: Orbax underneath, with a checksum per array and walking back over damage.

A checkpoint holds the train state, and a JSON item with the config, the data position, the validation
metrics and the checksums. The last few and the best by `total_loss` are kept.
"""

import contextlib
import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from audiovae_jax.errors import CheckpointError
from audiovae_jax.persistence import hosts
from audiovae_jax.persistence.step_folders import StepFolders
from audiovae_jax.persistence.step_objects import StepObjects
from audiovae_jax.storage import array_store
from audiovae_jax.storage.bucket_path import BucketPath, ServerAwayError
from audiovae_jax.storage.checksum import json_checksum
from audiovae_jax.training import mesh
from audiovae_jax.training.state import TrainState

BEST_METRIC = "total_loss"
# The collections that `model.apply` takes.
VARIABLES = ("params", "latent_statistics")
# 1 named arrays in another way; 2 had its metrics in an item of Orbax's own, and no checksum of its JSON.
_FORMAT, _KNOWN_FORMATS = 3, (2, 3)
_RUN_FILE, _OLD_METRICS_FILE = "run/metadata", "metrics/metrics"


class OutOfReachError(CheckpointError):
    """A checkpoint that may be whole, behind a server that is away or rights that are missing: no damage."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint's contents; `damaged` names newer ones that had to be passed over, and why."""

    state: TrainState
    step: int
    config: dict
    data: dict
    metrics: dict
    damaged: tuple[str, ...] = ()


class Checkpoints:
    """The checkpoints under `directory`, one folder per step.

    Nothing is made or deleted before the first `save`, but for damaged checkpoints that are set aside:
    moved to `damaged_checkpoints/` beside the folder, where nothing is ever removed. In a run of several processes
    all of them call `restore` and `save`, and the first alone moves files.

    Args:
      directory: created when needed, unless `read_only`.
      read_only: only look.
      still_ours: whether what is left of a failed write may be removed, and is nobody else's.
      kept: how many of the last ones; the best is kept besides.
    """

    def __init__(
        self,
        directory: Path | BucketPath,
        read_only: bool = False,
        still_ours: Callable[[], bool] = lambda: True,
        kept: int = 3,
    ):
        if read_only and not directory.is_dir():
            raise CheckpointError(f"{directory}: there is no such folder")
        self._directory, self._read_only = directory, read_only
        self._folders = StepObjects(directory) if isinstance(directory, BucketPath) else StepFolders(directory)
        self._writer = None
        self._newest_loss: dict[int, float] = {}  # of what is being written
        self._failed: set[int] = set()  # steps of which something may be left
        self._still_ours, self._kept = still_ours, kept

    def steps(self) -> list[int]:
        """The steps of finished checkpoints, ascending."""
        try:
            return self._folders.steps()
        except OSError as error:
            raise CheckpointError(f"{self._directory} cannot be looked into: {error.strerror or error}") from error

    def best(self) -> tuple[int, float] | None:
        """The step of the lowest `total_loss`, and that; None where none can be told."""
        return _best_of(self._losses())

    def best_step(self) -> int | None:
        """The step of the lowest `total_loss`; None where none can be told."""
        best = self.best()
        return best and best[0]

    def best_first(self) -> list[int]:
        """All steps: those whose loss cannot be read and may have been the best, the best, the newest to the oldest."""
        losses = self._losses()
        best = _best_of(losses)

        def place(step):
            return (losses[step] is not None, best is None or step != best[0], -step)

        return sorted(losses, key=place)

    def save(self, state: TrainState, *, step: int, config: dict, data: dict, metrics: dict[str, float]):
        """Begin writing a checkpoint in the background; the state may be donated afterwards.

        Args:
          state: the train state.
          step: batches seen.
          config: as nested dicts.
          data: position and fingerprint of the data.
          metrics: validation metrics as floats.

        Raises:
          CheckpointError: this one, or the one before, could not be written.
        """
        metrics = {name: float(value) for name, value in metrics.items()}
        arrays = array_store.describe(state)
        run = {"format": _FORMAT, "config": config, "data": data, "metrics": metrics, "arrays": arrays}
        run["checksum"] = json_checksum(run)
        in_bucket = isinstance(self._folders, StepObjects)
        if jax.process_count() == 1:
            # Orbax divides what every device holds among them, which takes an operation per device and array.
            state = jax.tree.map(lambda array: array.addressable_data(0), state)
        elif in_bucket and hosts.is_first():
            # It takes no array of one process alone; and not by reference, since its memory is used again.
            state = jax.tree.map(lambda array: np.array(array.addressable_data(0)), state)
        there = hosts.of_first(self.steps())
        is_new = self._writer is None
        if in_bucket:  # which one process alone writes to, and may have failed with
            is_new = hosts.any_reason("new" if is_new else None) is not None
        if is_new:
            # What cannot be described may have been the best; Orbax falls over some of it, or takes it for leftovers.
            self._set_aside(hosts.of_first([old for old in there if old != step and not self._is_described(old)]))
        if step in there:
            self._set_aside([step])
        self._failed.discard(step)
        with self._writing():
            if self._writer is None:
                self._writer = self._folders.writer(self._to_keep, self._still_ours)
            self._newest_loss = {step: _finite_loss(metrics)}
            self._writer.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run)),
                force=True,
            )

    def config(self, step: int) -> dict:
        """The config that a checkpoint was saved with.

        Raises:
          CheckpointError: it cannot be read.
        """
        return self._run(step)["config"]

    def newest_config(self) -> dict | None:
        """The config of the newest checkpoint whose description can be read; None if there is none."""
        step = self.newest_described()
        return None if step is None else self.config(step)

    def newest_described(self) -> int | None:
        """The step of the newest checkpoint whose description can be read; None if there is none."""
        return next((step for step in self.steps()[::-1] if self._is_described(step)), None)

    def metrics(self, step: int) -> dict:
        """The validation metrics that a checkpoint was saved with.

        Raises:
          CheckpointError: they cannot be read.
        """
        return self._run(step)["metrics"]

    def parts(self, step: int, names: tuple[str, ...]) -> dict:
        """The fields `names` of the state at `step`, as nested dicts of numpy arrays, without the rest of it.

        Raises:
          CheckpointError: they cannot be read, or do not match their checksums.
        """
        described = self._run(step)["arrays"]
        with self._opened(step) as folder:
            return array_store.read_tree(folder / "state", described, names, where=f"{self._directory / str(step)}")

    def restore(self, abstract_state: TrainState, sharding, step: int | None = None) -> Restored:
        """The checkpoint at `step`, or the newest that is whole.

        Args:
          abstract_state: shapes and dtypes to expect.
          sharding: where to put the arrays: the same on all devices.
          step: None walks back from the newest over damaged ones, which are set aside. What any process
            finds damaged is so for all.

        Raises:
          CheckpointError: none can be restored, and the message says why for each; or one cannot be reached.
        """
        candidates = [step] if step is not None else hosts.of_first(self.steps())[::-1]
        damaged = []
        for candidate in candidates:
            restored, reason = None, None
            try:
                restored = self._restore_step(candidate, abstract_state)
            except OutOfReachError:
                raise
            except CheckpointError as error:
                reason = str(error)
            reason = hosts.any_reason(reason)
            if reason is not None:
                damaged.append((candidate, reason))
                continue
            if not self._read_only:
                self._set_aside([failed for failed, _ in damaged])
            state = mesh.replicate(restored.state, sharding)
            return dataclasses.replace(restored, state=state, damaged=tuple(reason for _, reason in damaged))
        reasons = "\n".join(f"  {reason}" for _, reason in damaged) or f"  {self._directory} holds none"
        raise CheckpointError(
            f"no checkpoint could be restored:\n{reasons}\nrestore them from a copy, or start in another --workdir"
        )

    def check(self):
        """Raise CheckpointError if what is written in the background has failed; it is said once."""
        if self._writer is not None:
            with self._writing():
                # Orbax's own `check_for_errors` takes the error from the thread that, without it, removes old steps.
                if not self._writer.is_saving_in_progress():
                    self._writer.wait_until_finished()

    def wait(self):
        """Wait until everything is written.

        Raises:
          CheckpointError: the last one could not be, and that was not said before.
        """
        if self._writer is not None:
            with self._writing():
                self._writer.wait_until_finished()
        self._sweep()

    def close(self):
        """Finish writing and let go.

        Raises:
          CheckpointError: the last one could not be written, and that was not said before.
        """
        if self._writer is not None:
            with self._writing():
                self._writer.close()
            self._writer = None
        self._sweep()

    @contextlib.contextmanager
    def _writing(self):
        """What goes wrong inside is a CheckpointError, and leaves nothing half-written."""
        try:
            yield
        except Exception as error:  # Orbax and its storage raise what they like
            writer, self._writer = self._writer, None  # the next save begins afresh
            for _ in range(2 if writer is not None else 0):  # Orbax says it again before it lets go
                with contextlib.suppress(Exception):
                    writer.close()
            self._failed |= self._newest_loss.keys()
            self._sweep()
            kept = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(
                f"a checkpoint was not written to {self._directory}: {array_store.storage_reason(error)}; "
                f"those that are there whole: {kept}"
            ) from error

    def _sweep(self):
        """Remove what failed writes have left; again later, since Orbax's threads may not have heard of the failure."""
        if self._failed and hosts.is_first() and self._still_ours():
            for step in self._failed:
                for leftover in self._folders.unfinished(step):
                    for _ in range(20):  # a thread may write into it meanwhile
                        shutil.rmtree(leftover, ignore_errors=True)
                        if not leftover.exists():
                            break
                        time.sleep(0.05)

    def _set_aside(self, steps):
        """Move steps away, where a run that goes on from an earlier one comes by them again."""
        if steps:
            self.close()  # Orbax remembers what there is
        reason = None
        for step in steps if hosts.is_first() else []:
            try:
                self._folders.set_aside(step)
            except OSError as error:
                reason = (
                    f"{self._directory / str(step)} could not be moved to damaged_checkpoints/: "
                    f"{error.strerror or error}"
                )
        reason = hosts.any_reason(reason)
        if reason is not None:
            raise CheckpointError(reason)

    @contextlib.contextmanager
    def _opened(self, step):
        """The folder of a step on this machine; CheckpointError where it cannot be had."""
        try:
            with self._folders.opened(step) as folder:
                yield folder
        except (ServerAwayError, PermissionError) as error:
            raise OutOfReachError(f"{self._directory / str(step)} cannot be read: {error.strerror or error}") from error
        except OSError as error:
            raise CheckpointError(f"{self._directory / str(step)} is damaged: {error.strerror or error}") from error

    def _restore_step(self, step, abstract_state):
        """A checkpoint, on this process's first device and by itself: others may fail where this one does not."""
        where, run = str(self._directory / str(step)), self._run(step)
        array_store.require_same(array_store.describe_shapes(abstract_state), run["arrays"], where=where)
        with self._opened(step) as folder:
            state = array_store.read_like(folder / "state", abstract_state, where)
        array_store.require_checksums(state, run["arrays"], where)
        return Restored(state, step, run["config"], run["data"], run["metrics"])

    def _run(self, step):
        """The JSON item of a checkpoint, checked; of the old format with its metrics in it."""
        folder = self._directory / str(step)
        try:
            run = json.loads(self._folders.read(step, _RUN_FILE))
            if not isinstance(run, dict) or run.get("format") not in _KNOWN_FORMATS:
                found = run.get("format", "none") if isinstance(run, dict) else "none"
                raise CheckpointError(f"{folder} has format {found}; this version reads format {_FORMAT}")
            if run["format"] == 2:
                run["metrics"] = json.loads(self._folders.read(step, _OLD_METRICS_FILE))
            elif run.get("checksum") != json_checksum(run):
                raise CheckpointError(f"{folder} is damaged: {_RUN_FILE} does not match its checksum")
            parts = [run[part] for part in ("config", "data", "metrics", "arrays")]
            if not all(isinstance(part, dict) for part in parts) or not all(
                isinstance(a, str) for a in parts[3].values()
            ):
                raise CheckpointError(f"{folder} is damaged: {_RUN_FILE} is not the description of a checkpoint")
        except CheckpointError:
            raise
        except (ServerAwayError, PermissionError) as error:
            raise OutOfReachError(f"{folder} cannot be read: {error.strerror or error}") from error
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{folder} is damaged: {array_store.first_line(error)}") from error
        return run

    def _losses(self):
        """`{step: total_loss}`, infinite where it is no finite number, None where it cannot be read."""
        losses = {}
        for step in self.steps():
            losses[step] = None
            with contextlib.suppress(CheckpointError):
                losses[step] = _finite_loss(self.metrics(step))
        return losses

    def _is_described(self, step):
        try:
            self._run(step)
        except OutOfReachError:
            raise
        except CheckpointError:
            return False
        return True

    def _to_keep(self, steps):
        """Which of the steps there are, and the one that is being written, are kept."""
        losses = {step: loss for step, loss in {**self._losses(), **self._newest_loss}.items() if step in steps}
        best = _best_of(losses)
        unknown = {step for step, loss in losses.items() if loss is None}  # one of them may be the best
        return {*sorted(steps)[-self._kept :], *unknown, *(best[:1] if best else ())}


def _best_of(losses):
    """`(step, loss)` of the lowest finite loss, None where there is none."""
    finite = {step: loss for step, loss in losses.items() if loss is not None and math.isfinite(loss)}
    return min(finite.items(), key=lambda item: (item[1], item[0])) if finite else None


def _finite_loss(metrics):
    """The loss by which checkpoints are compared: NaN would be the best of all, and what was be deleted."""
    loss = metrics.get(BEST_METRIC)
    return loss if isinstance(loss, float) and math.isfinite(loss) else math.inf
