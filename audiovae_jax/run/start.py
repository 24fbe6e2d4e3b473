"""The start of a run: claim the workdir, open the data, get the state."""

import contextlib
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections

from audiovae_jax.config import build, configuration
from audiovae_jax.data.feeding import pipeline
from audiovae_jax.data.sets import catalog
from audiovae_jax.data.survey import duplicates
from audiovae_jax.distributed import agreement, mesh, stopping
from audiovae_jax.distributed.group import Group
from audiovae_jax.distributed.progress import Progress
from audiovae_jax.errors import ConfigError
from audiovae_jax.models.layers import count_parameters
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.run import warm_start
from audiovae_jax.run.bad_batches import BadBatches
from audiovae_jax.run.bucket_lock import as_workdir, lock_of
from audiovae_jax.run.reporter import Reporter, timed
from audiovae_jax.run.safety import Safety
from audiovae_jax.run.saving import Saving
from audiovae_jax.run.tracking import recorder
from audiovae_jax.run.tracking.sessions import SessionClock
from audiovae_jax.run.tracking.trace import StepTrace
from audiovae_jax.storage import bucket_path
from audiovae_jax.storage.bucket_path import BucketPath
from audiovae_jax.training import compilation, program
from audiovae_jax.training.state import Creation, TrainState
from audiovae_jax.training.step import Recipe

BAD_FILES = "bad_files.jsonl"  # in the workdir; the other processes put their index into the name
_MAX_SKIPPED_LINES = 20


class Start(NamedTuple):
    """Where training starts.

    Attributes:
      state: the train state, replicated on every device.
      step: the number of steps done.
      metrics: validation metrics of the checkpoint; None if training does not start from a checkpoint of this run.
      position: the checkpoint's position in the data; empty without a checkpoint.
    """

    state: TrainState
    step: int
    metrics: dict[str, float] | None
    position: dict

    @property
    def first_step(self) -> int:
        """The first step that this session reports."""
        return self.step if self.metrics is None else self.step + 1


@dataclasses.dataclass(frozen=True)
class Session:
    """A run that has started, on this process.

    Attributes:
      config: the finalized config.
      workdir: the run's folder.
      recipe: the objects that the config describes.
      data: training and validation records.
      devices: mesh of all devices.
      group: the run's processes.
      lock: the lock on `workdir`.
      checkpoints: the checkpoints in `workdir`.
      reporter: shows and records the run. It is disabled except in the first process.
      saving: saves checkpoints, with retries.
      safety: counts skipped updates, and decides on rollbacks.
      reader: reads `config.init_from` if it is a torch file.
      clock: measures where the time goes. It is recorded in the first process only.
      trace: of the steps to profile.
      peak_flops: see `train`.
    """

    config: ml_collections.ConfigDict
    workdir: Path | BucketPath
    recipe: Recipe
    data: pipeline.Data
    devices: jax.sharding.Mesh
    group: Group
    lock: Any
    checkpoints: Checkpoints
    reporter: Reporter
    saving: Saving
    safety: Safety
    reader: warm_start.TorchReader
    clock: SessionClock
    trace: StepTrace
    peak_flops: float | None = None

    def restore(self) -> Start:
        """Return where to start from: see `initial_state`."""
        return initial_state(
            self.config,
            self.recipe,
            self.devices,
            self.checkpoints,
            self.data.fingerprint,
            self.reporter.say,
            self.reader,
            self.group.progress,
        )

    def batches(self, records, start_step: int, num_steps: int) -> Iterator:
        """Iterate over this process's rows of the batches `start_step` to `num_steps`."""
        return pipeline.batches(
            records,
            batch_size=self.config.batch_size,
            start_step=start_step,
            num_steps=num_steps,
            num_threads=self.config.data.num_threads,
            prefetch_batches=self.config.data.prefetch_batches,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )


def open_session(
    config: ml_collections.ConfigDict,
    workdir: Path | BucketPath | str,
    group: Group,
    ending: contextlib.ExitStack,
    stop_after: float | None,
    say: Callable[[str], None],
    reader: warm_start.TorchReader,
    peak_flops: float | None = None,
    profile_steps: tuple[int, int] | None = None,
) -> tuple[Session, Start]:
    """Start or resume a run. The order of the steps matters.

    Args:
      config, workdir, stop_after, peak_flops, profile_steps: see `train`.
      group: the run's processes.
      ending: exit stack of everything to close at the end of the run.
      say: prints a line in the first process.
      reader: reads `config.init_from` if it is a torch file.

    Raises:
      ConfigError, DataError, CheckpointError: see `train`.
    """
    is_first = jax.process_index() == 0
    # 1. Check the config, in each process and between processes.
    workdir = as_workdir(workdir)
    configuration.check(config, jax.device_count())
    warm_start.pin_revision(config, workdir)
    _refuse_debug_nans()
    recorder.check(config)
    group.meet("config", same=what_all_share(config))
    # 2. Lock the workdir. From here on, a stop request ends the run and releases the lock.
    lock = lock_of(workdir, enabled=is_first)
    taken_from = lock.acquire()
    ending.callback(lock.release)
    group.before_exit(lock.release)
    ending.enter_context(stopping.requests(group.ask_to_stop, stop_after, at_once=lock.release))
    if taken_from is not None:
        say(f"taking over {workdir} from a run that was killed: {taken_from}")
    token = group.meet("workdir", tell=lock.token)
    if not is_first:
        lock.require_shared(token)
    # 3. Check the source of the run's state before the data is read, which may take minutes.
    checkpoints = Checkpoints(
        workdir / "checkpoints", still_ours=lock.is_held, kept=config.checkpoints_kept,
        kept_best=config.best_checkpoints_kept,
    )  # fmt: skip
    ending.callback(checkpoints.close)
    group.let_write(checkpoints.is_writing)
    if config.init_from is not None and not checkpoints.steps():
        warm_start.require_same_model(config, reader)
    # 4. Open the data.
    recipe = build.build_recipe(config)
    data = open_data(config, workdir)
    claim_workdir(config, workdir, checkpoints, write=is_first)
    if data.health is not None:
        data.health.list_in(workdir / (BAD_FILES if is_first else f"bad_files.{jax.process_index()}.jsonl"))
    group.meet("data", same={"fingerprint of the audio": data.fingerprint})
    # 5. Restore or create the state.
    devices = mesh.make_mesh()
    with group.progress.phase("compiling"), compilation.sparing():
        creation = Creation(recipe, build.example_shape(config))
    if is_first:
        say("\n".join(describe(config, recipe, data, creation.shapes)))
    start = initial_state(config, recipe, devices, checkpoints, data.fingerprint, say, reader, group.progress, creation)
    del creation
    compilation.forget()
    group.meet("state", same={"checkpoint to resume from": start.step})
    # 6. Open the reporter, the checkpoint writer and the safety checks.
    reporter = Reporter(
        workdir,
        start_step=start.step,
        first_step=start.first_step,
        num_steps=config.num_steps,
        sample_rate=config.data.sample_rate,
        enabled=is_first,
        writers=functools.partial(recorder.open_writers, config, workdir, start.first_step),
    )
    ending.callback(reporter.close)
    clock = SessionClock(group.progress)
    if is_first:
        clock.open(workdir, start.step, lock.is_held)
        ending.callback(clock.write)
    if profile_steps is not None and start.step >= profile_steps[1]:
        reporter.say(
            f"warning: no profile is written, since step {profile_steps[1]} of --profile_steps is done already"
        )
    trace = StepTrace(workdir, profile_steps, reporter.say, enabled=is_first)
    ending.callback(trace.close)
    # The reporter is disabled in the other processes, so they print their own warnings.
    warn = reporter.say if is_first else functools.partial(print, f"process {jax.process_index()}:", flush=True)
    saving = Saving(checkpoints, config.max_failed_saves, warn)
    kept = BadBatches(workdir, config.data.sample_rate, config.safety.kept_batches, jax.process_index(), warn)
    safety = Safety(config.safety, recipe, kept, reporter.say, start.position)
    session = Session(
        config, workdir, recipe, data, devices, group, lock, checkpoints, reporter, saving, safety, reader, clock,
        trace, peak_flops,
    )  # fmt: skip
    return session, start


def _refuse_debug_nans():
    for name in ("jax_debug_nans", "jax_debug_infs"):
        if getattr(jax.config, name):
            raise ConfigError(
                f"{name.upper()} is set. It has no effect on the compiled step. Unset it: a run reports and skips each "
                "update that is not finite, and keeps its batch in bad_batches/"
            )


def open_data(config: ml_collections.ConfigDict, workdir: Path | BucketPath) -> pipeline.Data:
    """Open the data of a run in `workdir`, without the samples that it writes.

    Warnings about files go to standard error, in one line each.

    Raises:
      ConfigError, DataError: see `pipeline.open_data`.
    """
    return pipeline.open_data(
        config.data,
        batch_size=config.batch_size,
        seed=config.seed,
        leave_out=(workdir / "samples",),
        warn=functools.partial(print, "warning:", file=sys.stderr),
    )


def what_all_share(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Return the settings that must be equal in all processes.

    They determine the compiled programs and the points at which the processes synchronize.
    """
    flat = configuration.flatten(configuration.plain(config))
    shared = {key: value for key, value in flat.items() if key not in configuration.HOST_KEYS}
    compilers = compilation.compiler_versions() | compilation.compiler_flags()
    return shared | compilers | {"devices of a process": jax.local_device_count()}


def claim_workdir(config: ml_collections.ConfigDict, workdir: Path | BucketPath, checkpoints: Checkpoints, write: bool):
    """Check the config of existing checkpoints, and write `config.json`.

    Args:
      config: the config of this run.
      workdir: the run's folder.
      checkpoints: the checkpoints in `workdir`.
      write: whether this process writes the file.

    Raises:
      ConfigError: the workdir belongs to another config, or `config.json` cannot be read or written. For another
        config, the message lists the differing keys.
    """
    path = workdir / "config.json"
    current = configuration.plain(config)
    previous = checkpoints.newest_config()
    if previous is None and checkpoints.steps() and path.exists():
        try:
            previous = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path} is not readable as JSON ({error}); restore it or use another --workdir"
            ) from error
    if previous is not None:
        changed = configuration.differences(previous, current)
        if changed:
            raise ConfigError(
                f"--workdir={workdir} contains a run of another config:\n  "
                + "\n  ".join(changed)
                + f"\nuse another --workdir, and --config.init_from={workdir} there to start from this run"
            )
    if write:
        try:
            bucket_path.write_json(path, current)
        except OSError as error:
            raise ConfigError(f"{path} was not written: {error.strerror or error}") from error


def initial_state(
    config,
    recipe,
    devices,
    checkpoints: Checkpoints,
    fingerprint: str,
    say,
    reader: warm_start.TorchReader | None = None,
    progress: Progress | None = None,
    creation: Creation | None = None,
) -> Start:
    """Restore the newest checkpoint, load `config.init_from`, or create a new state.

    `say` gets a line for each action. `reader` has already read a torch file at `config.init_from`. `progress` follows
    the phases. `creation` is the traced creation of the state, if there is one.

    Raises:
      CheckpointError: there are checkpoints, but none is intact.
    """
    progress = progress or Progress()
    sharding = mesh.replicated(devices)
    restored = None
    with progress.phase("restoring"):
        if creation is None:
            creation = Creation(recipe, build.example_shape(config))
        if agreement.of_first(checkpoints.steps()):
            restored = checkpoints.restore(program.on_every_device(creation.shapes, devices), sharding)
    if restored is not None:
        for reason in restored.damaged:
            say(f"warning: skipped a checkpoint: {reason}")
        say(f"resuming from step {restored.step}")
        if restored.data.get("fingerprint") != fingerprint:
            say(
                "warning: the audio under config.data.root or its split has changed since this run was stopped; from "
                "here on, crops differ from those of an uninterrupted run"
            )
        return Start(restored.state, restored.step, restored.metrics, restored.data)
    with progress.phase("compiling"), timed("drawing the initial parameters", say), compilation.sparing():
        state = jax.block_until_ready(creation.run(devices))
    if config.init_from is None:
        return Start(state, 0, None, {})
    with progress.phase("restoring"):
        state = warm_start.take_over(config, recipe, state, sharding, say, reader)
    warm_start.require_steps_to_make(config, int(state.step))
    return Start(state, int(state.step), None, {})


def describe(config, recipe, data, shapes: TrainState) -> list[str]:
    """Describe the model, the discriminator, the batch and the data, in lines.

    `shapes` are those of the state.
    """
    count = count_parameters(shapes.params)
    with_statistics = count + count_parameters(shapes.latent_statistics)
    lines = [
        f"model: {count:,} parameters ({with_statistics:,} with latent statistics), "
        f"hop {recipe.model.hop_length} samples, {recipe.model.dtype}"
    ]
    if recipe.model.encoder_frozen and config.init_from is None:
        lines.append("warning: config.model.encoder_frozen without config.init_from: the encoder stays as it was drawn")
    if recipe.discriminator is not None:
        lines.append(
            f"discriminator: {type(recipe.discriminator).__name__}, "
            f"{count_parameters(shapes.discriminator_params):,} trainable parameters"
        )
        if config.adversarial.warmup_steps >= config.num_steps:
            lines.append(
                "warning: config.adversarial.warmup_steps is not below num_steps, so the discriminator is never used"
            )
    seconds = config.data.crop_length / config.data.sample_rate
    lines.append(
        f"batch: {config.batch_size} crops of {config.data.crop_length} samples ({seconds:.2f} s) "
        f"on {jax.device_count()} {jax.devices()[0].platform} device(s)"
    )
    if data.catalog is None:
        lines.append("data: built-in music generator (config.data.root is not set)")
        return lines
    found = data.catalog
    minutes, held = (sum(track.seconds for track in side) / 60 for side in (found.train, found.validation))
    share = len(found.validation) / len({track.key for track in (*found.train, *found.validation)})
    lines.append(
        f"data: {len(found.train)} to train on ({minutes:.1f} min) and {len(found.validation)} for validation "
        f"({held:.1f} min, {share:.0%} of all), of {found.origin}"
    )
    if {track.key for track in found.train} & {track.key for track in found.validation}:
        lines.append("warning: there is one usable file, so training and validation share it")
    lines += [f"warning: {notice}" for notice in catalog.notices((*found.train, *found.validation))]
    leak = duplicates.leak(found, pipeline.probing_options(config.data))
    if leak is not None:
        lines.append(f"warning: {leak}")
    lines += catalog.left_out(found.ignored)
    lines += [f"skipped {name}: {reason}" for name, reason in found.skipped[:_MAX_SKIPPED_LINES]]
    if len(found.skipped) > _MAX_SKIPPED_LINES:
        lines.append(f"and {len(found.skipped) - _MAX_SKIPPED_LINES} more; all are listed in {BAD_FILES}")
    return lines
