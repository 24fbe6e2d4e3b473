"""Checkpoints of a run: Orbax underneath, with a checksum per array and walking back over damage.

A checkpoint holds the train state, and a JSON item with the config, the data position, the validation
metrics and the checksums. The last one and the best by `total_loss` are kept.
"""

import contextlib
import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from audiovae_jax.errors import CheckpointError
from audiovae_jax.storage import array_store, atomic
from audiovae_jax.storage.checksum import json_checksum
from audiovae_jax.training.state import TrainState

BEST_METRIC = "total_loss"
# The collections that `model.apply` takes.
VARIABLES = ("params", "latent_statistics")
# 1 named arrays in another way; 2 had its metrics in an item of Orbax's own, and no checksum of its JSON.
_FORMAT, _KNOWN_FORMATS = 3, (2, 3)
_RUN_FILE = Path("run") / "metadata"
_OLD_METRICS_FILE = Path("metrics") / "metrics"


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

    Nothing is made or deleted before the first `save`, but for damaged checkpoints that `restore` sets aside.

    Args:
      directory: created when needed, unless `read_only`.
      read_only: only look.
      still_ours: whether what is left of a failed write may be removed, and is nobody else's.
    """

    def __init__(self, directory: Path, read_only: bool = False, still_ours: Callable[[], bool] = lambda: True):
        if read_only and not directory.is_dir():
            raise CheckpointError(f"{directory}: there is no such folder")
        self._directory, self._read_only = directory, read_only
        self._manager: ocp.CheckpointManager | None = None
        self._newest_loss: dict[int, float] = {}  # of what is being written
        self._failed, self._still_ours = False, still_ours

    def steps(self) -> list[int]:
        """The steps of finished checkpoints, ascending."""
        try:
            # What is not finished has another name.
            return sorted(int(child.name) for child in self._directory.iterdir() if _is_step(child))
        except FileNotFoundError:
            return []
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
        if jax.process_count() == 1:
            # Orbax divides what every device holds among them, which takes an operation per device and array.
            state = jax.tree.map(lambda array: array.addressable_data(0), state)
        with self._writing():
            if self._manager is None:
                self._manager = self._open_manager()
            self._newest_loss = {step: _finite_loss(metrics)}
            self._manager.save(
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
        for step in self.steps()[::-1]:
            with contextlib.suppress(CheckpointError):
                return self.config(step)
        return None

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
        return array_store.read_tree(self._directory / str(step) / "state", described, names)

    def restore(self, abstract_state: TrainState, sharding, step: int | None = None) -> Restored:
        """The checkpoint at `step`, or the newest that is whole.

        Args:
          abstract_state: shapes and dtypes to expect.
          sharding: where to put the arrays.
          step: None walks back from the newest over damaged ones, which are moved to
            `damaged_checkpoints/` beside the folder.

        Raises:
          CheckpointError: none can be restored; the message says why for each.
        """
        candidates = [step] if step is not None else self.steps()[::-1]
        damaged = []
        for candidate in candidates:
            try:
                restored = self._restore_step(candidate, abstract_state, sharding)
            except CheckpointError as error:
                damaged.append((candidate, str(error)))
                continue
            if not self._read_only:
                self._set_aside([failed for failed, _ in damaged])
            return dataclasses.replace(restored, damaged=tuple(reason for _, reason in damaged))
        reasons = "\n".join(f"  {reason}" for _, reason in damaged) or f"  {self._directory} holds none"
        raise CheckpointError(
            f"no checkpoint could be restored:\n{reasons}\nrestore them from a copy, or start in another --workdir"
        )

    def check(self):
        """Raise CheckpointError if what is written in the background has failed."""
        if self._manager is not None:
            with self._writing():
                self._manager.check_for_errors()

    def wait(self):
        """Wait until everything is on disk.

        Raises:
          CheckpointError: the last one could not be written.
        """
        if self._manager is not None:
            with self._writing():
                self._manager.wait_until_finished()

    def close(self):
        """Finish writing and let go.

        Raises:
          CheckpointError: the last one could not be written, and that was not said before.
        """
        if self._manager is None:
            return
        manager, self._manager = self._manager, None
        if self._failed:
            with contextlib.suppress(Exception):
                manager.close()
            return
        with self._writing():
            manager.close()

    def _open_manager(self):
        # Orbax looks into the metrics of every checkpoint of the old format, and falls over damaged ones.
        self._set_aside([step for step in self.steps() if not self._has_readable_old_metrics(step)])
        self._directory.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_LastAndBest(lambda: {**self._losses(), **self._newest_loss}),
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        return ocp.CheckpointManager(
            self._directory.absolute(),
            options=options,
            item_handlers={"state": ocp.StandardCheckpointHandler(), "run": ocp.JsonCheckpointHandler()},
        )

    @contextlib.contextmanager
    def _writing(self):
        """What goes wrong inside is a CheckpointError, and leaves nothing half-written."""
        try:
            yield
        except Exception as error:  # Orbax and its storage raise what they like
            self._failed = True
            for step in self._newest_loss if jax.process_index() == 0 and self._still_ours() else ():
                for leftover in self._directory.glob(f"{step}.orbax-checkpoint-tmp*"):
                    shutil.rmtree(leftover, ignore_errors=True)
            kept = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(
                f"a checkpoint was not written to {self._directory}: {array_store.storage_reason(error)}; "
                f"those that are there whole: {kept}. With that mended, the same command goes on from there"
            ) from error

    def _set_aside(self, steps):
        # A run that goes on from an earlier step comes by these again.
        for step in steps if jax.process_index() == 0 else []:
            target = self._directory.parent / "damaged_checkpoints" / str(step)
            try:
                target.parent.mkdir(exist_ok=True)
                shutil.rmtree(target, ignore_errors=True)
                (self._directory / str(step)).rename(target)
            except OSError as error:
                raise CheckpointError(
                    f"{self._directory / str(step)} is damaged and could not be moved to {target}: "
                    f"{error.strerror or error}"
                ) from error
        if steps and self._manager is not None:
            self._manager.reload()

    def _restore_step(self, step, abstract_state, sharding):
        folder = self._directory / str(step)
        run = self._run(step)
        array_store.require_same(array_store.describe_shapes(abstract_state), run["arrays"], where=str(folder))
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract_state)
        try:
            with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
                state = checkpointer.restore(folder.absolute() / "state", args=ocp.args.StandardRestore(target))
        except Exception as error:  # Orbax and its storage raise what they like
            raise CheckpointError(f"{folder} is damaged: {array_store.first_line(error)}") from error
        array_store.require_checksums(state, run["arrays"], where=str(folder))
        return Restored(state, step, run["config"], run["data"], run["metrics"])

    def _run(self, step):
        """The JSON item of a checkpoint, checked; of the old format with its metrics in it."""
        folder = self._directory / str(step)
        try:
            run = json.loads((folder / _RUN_FILE).read_text())
            if not isinstance(run, dict) or run.get("format") not in _KNOWN_FORMATS:
                found = run.get("format", "none") if isinstance(run, dict) else "none"
                raise CheckpointError(f"{folder} has format {found}; this version reads format {_FORMAT}")
            if run["format"] == 2:
                run["metrics"] = json.loads((folder / _OLD_METRICS_FILE).read_text())
            elif run.get("checksum") != json_checksum(run):
                raise CheckpointError(f"{folder} is damaged: {_RUN_FILE} does not match its checksum")
            parts = [run[part] for part in ("config", "data", "metrics", "arrays")]
            if not all(isinstance(part, dict) for part in parts) or not all(
                isinstance(a, str) for a in parts[3].values()
            ):
                raise CheckpointError(f"{folder} is damaged: {_RUN_FILE} is not the description of a checkpoint")
        except CheckpointError:
            raise
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

    def _has_readable_old_metrics(self, step):
        path = self._directory / str(step) / _OLD_METRICS_FILE
        try:
            json.loads(path.read_text())
        except FileNotFoundError:
            pass
        except (OSError, ValueError, RecursionError):
            return False
        return True


class _LastAndBest(ocp.checkpoint_managers.PreservationPolicy):
    """Which checkpoints Orbax keeps: the last one, and the best.

    Args:
      losses: gives `{step: total_loss}` of those on disk and the one that is being written.
    """

    def __init__(self, losses: Callable[[], dict[int, float]]):
        self._losses = losses

    def should_preserve(self, checkpoints, *, context):
        del context
        steps = [info.step for info in checkpoints]
        best = _best_of({step: loss for step, loss in self._losses().items() if step in steps})
        kept = {max(steps, default=None), best and best[0]}
        return [step in kept for step in steps]


def _best_of(losses):
    """`(step, loss)` of the lowest finite loss, None where there is none."""
    finite = {step: loss for step, loss in losses.items() if loss is not None and math.isfinite(loss)}
    return min(finite.items(), key=lambda item: (item[1], item[0])) if finite else None


def _finite_loss(metrics):
    """The loss by which checkpoints are compared: NaN would be the best of all, and what was be deleted."""
    loss = metrics.get(BEST_METRIC)
    return loss if isinstance(loss, float) and math.isfinite(loss) else math.inf


def _is_step(folder):
    return folder.name.isdigit() and folder.is_dir()


def locate(path: str) -> tuple[Path, int | None]:
    """The checkpoint folder and step that a user's path means.

    Args:
      path: a workdir, its `checkpoints` folder, or one step's folder.

    Returns:
      `(folder of checkpoints, step)`; None for the newest step.

    Raises:
      CheckpointError: there is no checkpoint there.
    """
    given = Path(path)
    if not given.exists():
        raise CheckpointError(f"{path}: there is no such file or folder")
    if given.name.isdigit() and (given / "state").is_dir():
        return given.parent, int(given.name)
    for folder in (given / "checkpoints", given):
        if folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir()):
            return folder, None
    raise CheckpointError(f"{path} holds no checkpoint; give a training workdir, or one of its checkpoints/<step>")


def write_json(path: Path, value: Any):
    """Write JSON so that the file is either whole or not there."""
    with atomic.replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
