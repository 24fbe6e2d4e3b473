"""Checkpoints of a run, stored with Orbax and verified by a checksum per array.

A checkpoint contains the train state and a JSON item. The JSON item has the config, the data position, the validation
metrics and the checksums. These are kept: the most recent validated checkpoints, the best ones, and the newest one
without a validation. The best are those by the `best_metric` of the newest checkpoint's config. Restoring falls back to
the newest intact checkpoint.
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

from audiovae_jax.distributed import agreement, mesh
from audiovae_jax.errors import CheckpointError
from audiovae_jax.persistence.locate import STATE
from audiovae_jax.persistence.step_folders import StepFolders
from audiovae_jax.persistence.step_objects import StepObjects
from audiovae_jax.storage import array_store
from audiovae_jax.storage.bucket_path import BucketPath, ServerAwayError
from audiovae_jax.storage.checksum import json_checksum
from audiovae_jax.training.state import ALIGNMENT, TrainState, merged

BEST_METRIC = "total_loss"  # if the config names none
_HIGHER_IS_BETTER = ("si_sdr_db",)
# The variable collections of `model.apply`.
VARIABLES = ("params", "latent_statistics")
AVERAGED = "averaged_params"  # the field of the train state that replaces `params` for evaluation
ALIGNED = "alignment_params"  # the field of the train state with the projection of `losses.alignment`
_FORMAT = 3
_RUN_FILE = "run/metadata"


class OutOfReachError(CheckpointError):
    """A checkpoint cannot be reached, but may be intact.

    The server is away, or permissions are missing.
    """


@dataclasses.dataclass(frozen=True)
class Restored:
    """A restored checkpoint; `damaged` has a reason for each newer one skipped."""

    state: TrainState
    step: int
    config: dict
    data: dict
    metrics: dict
    damaged: tuple[str, ...] = ()


class Checkpoints:
    """The checkpoints under `directory`, one folder per step.

    Before the first `save`, nothing is created or deleted. The one exception: `restore` moves damaged checkpoints to
    `damaged_checkpoints/` beside the folder, where nothing is ever deleted. In a run of several processes, all of them
    must call `restore` and `save`. Only the first process moves files.

    Args:
      directory: created when needed, unless `read_only`.
      read_only: never move or write anything.
      still_ours: returns whether this run still owns the directory, so that leftovers of a failed write may be removed.
      kept: number of most recent validated checkpoints to keep, in addition to the best and the newest not validated.
      kept_best: number of best checkpoints to keep.
    """

    def __init__(
        self,
        directory: Path | BucketPath,
        read_only: bool = False,
        still_ours: Callable[[], bool] = lambda: True,
        kept: int = 3,
        kept_best: int = 1,
    ):
        if read_only and not directory.is_dir():
            raise CheckpointError(": there is no such folder", path=directory)
        self._directory, self._read_only = directory, read_only
        self._folders = StepObjects(directory) if isinstance(directory, BucketPath) else StepFolders(directory)
        self._writer = None
        self._newest_loss: dict[int, float] = {}  # loss of the checkpoint being written, by its step
        self._failed: set[int] = set()  # steps whose failed writes may have left files
        self._still_ours, self._kept, self._kept_best = still_ours, kept, kept_best
        self._best_metric: str | None = None  # of the last save

    def steps(self) -> list[int]:
        """Return the steps of finished checkpoints, ascending."""
        try:
            return self._folders.steps()
        except OSError as error:
            raise CheckpointError(f" cannot be listed: {error.strerror or error}", path=self._directory) from error

    def best(self) -> tuple[int, float] | None:
        """Return `(step, value of the best metric)` of the best checkpoint, or None."""
        metric, losses = self._metric_and_losses()
        return next(((step, as_loss(metric, loss)) for step, loss in _best_of(losses)), None)

    def best_first(self) -> list[int]:
        """Return all steps in the order in which to look for the best model.

        Steps with an unreadable loss come first, since one of them may be the best. The best step follows, then the
        others from newest to oldest.
        """
        losses = self._losses()
        best = [step for step, _ in _best_of(losses)[:1]]

        def place(step):
            return (losses[step] is not None, step not in best, -step)

        return sorted(losses, key=place)

    def save(self, state: TrainState, *, step: int, config: dict, data: dict, metrics: dict[str, float]):
        """Start writing a checkpoint in the background; `state` may be donated on return.

        Args:
          state: the train state.
          step: number of batches seen.
          config: nested dicts.
          data: position and fingerprint of the data.
          metrics: validation metrics, as floats; empty without a validation.

        Raises:
          CheckpointError: this checkpoint or the previous one could not be written.
        """
        metrics = {name: float(value) for name, value in metrics.items()}
        arrays = array_store.describe(state)
        run = {"format": _FORMAT, "config": config, "data": data, "metrics": metrics, "arrays": arrays}
        run["checksum"] = json_checksum(run)
        in_bucket = isinstance(self._folders, StepObjects)
        if jax.process_count() == 1:
            # Orbax would split replicated arrays over devices, with an operation per device and array.
            state = jax.tree.map(lambda array: array.addressable_data(0), state)
        elif in_bucket and agreement.is_first():
            # Orbax rejects arrays of a single process. Copy them, since the state's memory may be donated.
            state = jax.tree.map(lambda array: np.array(array.addressable_data(0)), state)
        there = agreement.of_first(self.steps())
        is_new = self._writer is None
        if in_bucket:  # only the first process writes there, so it may have dropped its writer after a failure
            is_new = agreement.any_reason("new" if is_new else None) is not None
        if is_new:
            # One with an unreadable description may be the best. Orbax fails on some, or deletes them as leftovers.
            self._set_aside(agreement.of_first([old for old in there if old != step and not self._is_described(old)]))
        if step in there:
            self._set_aside([step])
        self._failed.discard(step)
        with self._writing():
            if self._writer is None:
                self._writer = self._folders.writer(self._to_keep, self._still_ours)
            self._best_metric = config.get("best_metric", BEST_METRIC)
            self._newest_loss = {step: comparable_loss(metrics, self._best_metric)}
            self._writer.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run)),
                force=True,
            )

    def config(self, step: int) -> dict:
        """Return the config that a checkpoint was saved with.

        Raises:
          CheckpointError: the description cannot be read.
        """
        return self._run(step)["config"]

    def newest_config(self) -> dict | None:
        """Return the config of the newest checkpoint that is readable, or None."""
        step = self.newest_described()
        return None if step is None else self.config(step)

    def newest_described(self) -> int | None:
        """Return the step of the newest checkpoint with a readable description, or None."""
        return next((step for step in self.steps()[::-1] if self._is_described(step)), None)

    def metrics(self, step: int) -> dict:
        """Return the validation metrics that a checkpoint was saved with.

        Raises:
          CheckpointError: the description cannot be read.
        """
        return self._run(step)["metrics"]

    def parts(self, step: int, names: tuple[str, ...]) -> dict:
        """Read only the fields `names` of the state at `step`.

        Returns:
          Nested dicts of numpy arrays, by field name.

        Raises:
          CheckpointError: the arrays cannot be read, or do not match their checksums.
        """
        described = self._run(step)["arrays"]
        with self._opened(step) as folder:
            return array_store.read_tree(folder / STATE, described, self._directory / str(step), names)

    def has_average(self, step: int) -> bool:
        """Whether the checkpoint at `step` has averaged parameters.

        Raises:
          CheckpointError: the description cannot be read.
        """
        return self.has(step, AVERAGED)

    def has(self, step: int, part: str) -> bool:
        """Whether the checkpoint at `step` has the field `part` of the state.

        Raises:
          CheckpointError: the description cannot be read.
        """
        return any(name.startswith(f"{part}/") for name in self._run(step)["arrays"])

    def variables(self, step: int) -> dict:
        """Read the model's variables, with the averaged parameters where there are any.

        Raises:
          CheckpointError: see `parts`.
        """
        return evaluated(self.parts(step, (*VARIABLES, AVERAGED) if self.has_average(step) else VARIABLES))

    def restore(self, abstract_state: TrainState, sharding, step: int | None = None) -> Restored:
        """Restore the checkpoint at `step`, or the newest intact one.

        Args:
          abstract_state: expected shapes and dtypes.
          sharding: the replicated sharding of the restored arrays.
          step: the checkpoint to restore. With None, damaged checkpoints are skipped from the newest on and moved to
            `damaged_checkpoints/`. A checkpoint that one process finds damaged is skipped by all.

        Raises:
          CheckpointError: no checkpoint can be restored, with the reason for each.
          OutOfReachError: a checkpoint cannot be reached.
        """
        candidates = [step] if step is not None else agreement.of_first(self.steps())[::-1]
        damaged = []
        for candidate in candidates:
            restored, reason = None, None
            try:
                restored = self._restore_step(candidate, abstract_state)
            except OutOfReachError:
                raise
            except CheckpointError as error:
                reason = str(error)
            reason = agreement.any_reason(reason)
            if reason is not None:
                damaged.append((candidate, reason))
                continue
            if not self._read_only:
                self._set_aside([failed for failed, _ in damaged])
            state = mesh.replicate(restored.state, sharding)
            return dataclasses.replace(restored, state=state, damaged=tuple(reason for _, reason in damaged))
        reasons = "\n".join(f"  {reason}" for _, reason in damaged) or f"  {self._directory} contains none"
        raise CheckpointError(
            f"no checkpoint could be restored:\n{reasons}\nrestore one from a copy, or start in another --workdir"
        )

    def set_aside_unvalidated(self) -> list[int]:
        """Move checkpoints without a validation aside, and return their steps.

        They go to `damaged_checkpoints/`.
        """
        steps = agreement.of_first([step for step, loss in self._losses().items() if _is_unvalidated(loss)])
        self._set_aside(steps)
        return steps

    def check(self):
        """Raise CheckpointError, once, if the write in the background has failed."""
        if self._writer is not None:
            with self._writing():
                # Orbax's `check_for_errors` would hide the error from the thread that then removes old steps.
                if not self._writer.is_saving_in_progress():
                    self._writer.wait_until_finished()

    def is_writing(self) -> bool:
        """Whether a checkpoint is being written; callable from any thread."""
        writer = self._writer
        return writer is not None and writer.is_saving_in_progress()

    def wait(self):
        """Wait until all writes have finished.

        Raises:
          CheckpointError: the last write failed, and this was not raised before.
        """
        if self._writer is not None:
            with self._writing():
                self._writer.wait_until_finished()
        self._sweep()

    def close(self):
        """Finish all writes and release Orbax's resources.

        Raises:
          CheckpointError: the last write failed, and this was not raised before.
        """
        if self._writer is not None:
            with self._writing():
                self._writer.close()
            self._writer = None
        self._sweep()

    @contextlib.contextmanager
    def _writing(self):
        """Raise any exception of a write as CheckpointError, and remove partial files."""
        try:
            yield
        except Exception as error:  # Orbax and its storage raise exceptions of any type
            writer, self._writer = self._writer, None  # the next save creates a new one
            for _ in range(2 if writer is not None else 0):  # Orbax may raise the error again on the first call
                with contextlib.suppress(Exception):
                    writer.close()
            self._failed |= self._newest_loss.keys()
            self._sweep()
            kept = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(
                f"a checkpoint was not written to {self._directory}: {array_store.storage_reason(error)}; "
                f"intact checkpoints: {kept}"
            ) from error

    def _sweep(self):
        """Remove the files of failed writes.

        Called again later, since threads of Orbax may still be writing when the failure is raised.
        """
        if self._failed and agreement.is_first() and self._still_ours():
            for step in self._failed:
                for leftover in self._folders.unfinished(step):
                    for _ in range(20):  # a thread may still be writing into it
                        shutil.rmtree(leftover, ignore_errors=True)
                        if not leftover.exists():
                            break
                        time.sleep(0.05)

    def _set_aside(self, steps):
        """Move steps to `damaged_checkpoints/`.

        A run resumed from an earlier step will write them again.
        """
        if steps:
            self.close()  # Orbax caches the list of steps
        reason = None
        for step in steps if agreement.is_first() else []:
            try:
                self._folders.set_aside(step)
            except OSError as error:
                reason = (
                    f"{self._directory / str(step)} could not be moved to damaged_checkpoints/: "
                    f"{error.strerror or error}"
                )
        reason = agreement.any_reason(reason)
        if reason is not None:
            raise CheckpointError(reason)

    @contextlib.contextmanager
    def _opened(self, step):
        """A context with a step's local folder; raises CheckpointError if unreadable."""
        try:
            with self._folders.opened(step) as folder:
                yield folder
        except (ServerAwayError, PermissionError) as error:
            raise OutOfReachError(
                f" cannot be read: {error.strerror or error}", path=self._directory / str(step)
            ) from error
        except OSError as error:
            raise CheckpointError(
                f" is damaged: {error.strerror or error}", path=self._directory / str(step)
            ) from error

    def _restore_step(self, step, abstract_state):
        """Restore a step to this process's first device.

        This does not wait for other processes, which may fail where this one succeeds.
        """
        where, run = self._directory / str(step), self._run(step)
        array_store.require_same(array_store.describe_shapes(abstract_state), run["arrays"], where=where)
        with self._opened(step) as folder:
            state = array_store.read_like(folder / STATE, abstract_state, where)
        array_store.require_checksums(state, run["arrays"], where)
        return Restored(state, step, run["config"], run["data"], run["metrics"])

    def _run(self, step):
        """Return the verified JSON item of a checkpoint."""
        folder = self._directory / str(step)
        try:
            run = json.loads(self._folders.read(step, _RUN_FILE))
            if not isinstance(run, dict) or run.get("format") != _FORMAT:
                found = run.get("format", "none") if isinstance(run, dict) else "none"
                raise CheckpointError(f" has format {found}; this version reads format {_FORMAT}", path=folder)
            if run.get("checksum") != json_checksum(run):
                raise CheckpointError(f" is damaged: {_RUN_FILE} does not match its checksum", path=folder)
            parts = [run[part] for part in ("config", "data", "metrics", "arrays")]
            if not all(isinstance(part, dict) for part in parts) or not all(
                isinstance(a, str) for a in parts[3].values()
            ):
                raise CheckpointError(f" is damaged: {_RUN_FILE} is not the description of a checkpoint", path=folder)
        except CheckpointError:
            raise
        except (ServerAwayError, PermissionError) as error:
            raise OutOfReachError(f" cannot be read: {error.strerror or error}", path=folder) from error
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(" is damaged", path=folder, detail=array_store.first_line(error)) from error
        return run

    def _losses(self):
        """Return `{step: comparable_loss}` by the best metric; None if unreadable."""
        return self._metric_and_losses()[1]

    def _metric_and_losses(self):
        """Return the name of the best metric, and `_losses`."""
        runs = {}
        for step in self.steps():
            runs[step] = None
            with contextlib.suppress(CheckpointError):
                runs[step] = self._run(step)
        named = [run["config"].get("best_metric", BEST_METRIC) for run in runs.values() if run is not None]
        metric = self._best_metric or (named or [BEST_METRIC])[-1]
        return metric, {
            step: None if run is None else comparable_loss(run["metrics"], metric) for step, run in runs.items()
        }

    def _is_described(self, step):
        try:
            self._run(step)
        except OutOfReachError:
            raise
        except CheckpointError:
            return False
        return True

    def _to_keep(self, steps):
        """Return the subset of `steps` to keep."""
        losses = {step: loss for step, loss in {**self._losses(), **self._newest_loss}.items() if step in steps}
        best = [step for step, _ in _best_of(losses)[: self._kept_best]]
        unknown = {step for step, loss in losses.items() if loss is None}  # one of them may be the best
        unvalidated = sorted(step for step, loss in losses.items() if _is_unvalidated(loss))
        validated = sorted(set(steps) - set(unvalidated))
        return {*validated[-self._kept :], *unvalidated[-1:], *unknown, *best}


def _best_of(losses):
    """Return `(step, loss)` of each finite loss, the lowest first."""
    finite = [(step, loss) for step, loss in losses.items() if loss is not None and math.isfinite(loss)]
    return sorted(finite, key=lambda item: (item[1], item[0]))


def as_loss(name: str, value: float) -> float:
    """Return a validation metric with the sign of a loss.

    The same call converts such a loss back to the metric.
    """
    return -value if name in _HIGHER_IS_BETTER else value


def comparable_loss(metrics: dict[str, float], name: str) -> float:
    """Return the metric `name` as a loss to compare validations by.

    It is infinite if the metric is missing or not finite, and NaN without a validation. Neither counts as the best.
    """
    if not metrics:
        return math.nan
    value = metrics.get(name)
    return as_loss(name, value) if isinstance(value, float) and math.isfinite(value) else math.inf


def _is_unvalidated(loss):
    return loss is not None and math.isnan(loss)


def evaluated(parts: dict) -> dict:
    """Return `parts` of a state with the averaged parameters as its parameters.

    Without an average, they stay the trained ones.
    """
    parts = dict(parts)
    if (averaged := parts.pop(AVERAGED, None)) is not None:
        parts["params"] = merged(parts["params"], averaged)
    return parts


def without_projection(opt_state) -> dict[str, jax.Array | np.ndarray]:
    """Return an optimizer's arrays by name, without the alignment's projection."""
    leaves = array_store.named_leaves(opt_state)
    return {name: leaf for name, leaf in leaves.items() if ALIGNMENT not in name.split("/")}
