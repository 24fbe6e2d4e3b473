"""Checkpoints of a run: Orbax underneath, with a checksum per array and walking back over damage.

A checkpoint holds the train state, and a JSON item with the config, the data position and the
checksums. The last one and the best by `total_loss` are kept.
"""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from audiovae_jax import array_store, atomic
from audiovae_jax.errors import CheckpointError
from audiovae_jax.state import TrainState

BEST_METRIC = "total_loss"
# The collections that `model.apply` takes.
VARIABLES = ("params", "latent_statistics")
_FORMAT = 2  # 1 named arrays in another way


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

    Args:
      directory: created if need be, unless `read_only`.
      read_only: only look.
    """

    def __init__(self, directory: Path, read_only: bool = False):
        if read_only and not directory.is_dir():
            raise CheckpointError(f"{directory}: there is no such folder")
        managers = ocp.checkpoint_managers
        policy = managers.AnyPreservationPolicy(
            [managers.LatestN(1), managers.BestN(get_metric_fn=_badness, reverse=True, n=1)]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=_badness,
            best_mode="min",
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            enable_async_checkpointing=not read_only,
        )
        self._directory, self._read_only = directory, read_only
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=options,
            item_handlers={"state": ocp.StandardCheckpointHandler(), "run": ocp.JsonCheckpointHandler()},
        )

    def steps(self) -> list[int]:
        """The steps of finished checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step of the lowest `total_loss`, if any."""
        return self._manager.best_step()

    def save(self, state: TrainState, *, step: int, config: dict, data: dict, metrics: dict[str, float]):
        """Begin writing a checkpoint in the background; the state may be donated afterwards.

        Args:
          state: the train state.
          step: batches seen.
          config: as nested dicts.
          data: position and fingerprint of the data.
          metrics: validation metrics as floats.
        """
        run = {"format": _FORMAT, "config": config, "data": data, "arrays": array_store.describe(state)}
        if jax.process_count() == 1:
            # Orbax divides what every device holds among them, which takes an operation per device and array.
            state = jax.tree.map(lambda array: array.addressable_data(0), state)
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run)),
            metrics={name: float(value) for name, value in metrics.items()},
            force=True,
        )

    def config(self, step: int) -> dict:
        """The config that a checkpoint was saved with.

        Raises:
          CheckpointError: it cannot be read.
        """
        return self._run(step)["config"]

    def metrics(self, step: int) -> dict:
        """The validation metrics that a checkpoint was saved with."""
        return self._manager.metrics(step) or {}

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

    def _set_aside(self, steps):
        # A run that goes on from an earlier step comes by these again.
        for step in steps:
            target = self._directory.parent / "damaged_checkpoints" / str(step)
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            (self._directory / str(step)).rename(target)
        if steps:
            self._manager.reload()

    def wait(self):
        """Wait until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self):
        """Finish writing and let go."""
        self._manager.close()

    def _restore_step(self, step, abstract_state, sharding):
        folder = self._directory / str(step)
        run = self._run(step)
        array_store.require_same(array_store.describe_shapes(abstract_state), run["arrays"], where=str(folder))
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract_state)
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))
            state = restored["state"]
            metrics = self._manager.metrics(step) or {}
        except Exception as error:  # Orbax and its storage raise what they like
            raise CheckpointError(f"{folder} is damaged: {array_store.first_line(error)}") from error
        array_store.require_checksums(state, run["arrays"], where=str(folder))
        return Restored(state, step, run["config"], run["data"], metrics)

    def _run(self, step):
        folder = self._directory / str(step)
        try:
            run = self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
            if run["format"] != _FORMAT:
                raise CheckpointError(f"{folder} has format {run['format']}; this version reads format {_FORMAT}")
            if not {"config", "data", "arrays"} <= run.keys():
                raise CheckpointError(f"{folder}/run lacks keys; it is damaged")
            return run
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"{folder} is damaged: {array_store.first_line(error)}") from error


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


def _badness(metrics):
    # Orbax would take NaN for the best of all and delete what was.
    value = metrics[BEST_METRIC] if metrics else math.inf
    return value if math.isfinite(value) else math.inf
