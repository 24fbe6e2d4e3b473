"""Train a model: `train(config, workdir)`."""

import contextlib
import dataclasses
import functools
import math
import sys
from pathlib import Path

import jax
import ml_collections

from audiovae_jax.distributed.group import Group
from audiovae_jax.distributed.launch import HEARTBEAT_TIMEOUT
from audiovae_jax.errors import TrainingError, printable
from audiovae_jax.persistence import saved_model
from audiovae_jax.persistence.checkpoint import BEST_METRIC
from audiovae_jax.run import warm_start
from audiovae_jax.run.loop import Loop
from audiovae_jax.run.start import open_session
from audiovae_jax.run.tracking import sessions
from audiovae_jax.storage.bucket_path import BucketPath
from audiovae_jax.training.state import TrainState


def train(
    config: ml_collections.ConfigDict,
    workdir: Path | BucketPath | str,
    *,
    stop_after: float | None = None,
    heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
    peak_flops: float | None = None,
    profile_steps: tuple[int, int] | None = None,
    reader: warm_start.TorchReader | None = None,
) -> TrainState:
    """Train a model, or resume the run in `workdir`.

    On SIGTERM, Ctrl-C or `stop_after`, the run saves a checkpoint and returns. The same call resumes from it, and the
    result is bit-identical to an uninterrupted run. All of jax's caches are cleared before the first step (see
    `compilation.forget`).

    Args:
      config: a finalized config (see `configuration.finalize`).
      workdir: a folder, or an `s3://` or `gs://` URL, for `config.json`, `checkpoints/`, TensorBoard events and
        `samples/`.
      stop_after: seconds from now after which the run stops; None for no limit.
      heartbeat_timeout: seconds without a heartbeat after which another process of the run counts as dead.
      peak_flops: floating-point operations per second that one device can do. If given, the step's share is recorded.
      profile_steps: see `StepTrace`.
      reader: the reader that has read a torch file at `config.init_from` before, if any.

    Returns:
      The last train state, at step `config.num_steps` unless the run was stopped or `config.early_stopping` ended it.

    Raises:
      ConfigError: the config is invalid, or the workdir belongs to another config, is in use or is not writable.
      DataError: there is no usable audio.
      CheckpointError: there is no usable checkpoint to resume from, or `max_failed_saves` checkpoints in a row could
        not be written.
      TrainingError: too many updates were NaN or infinite, the workdir was deleted during the run, or another process
        died. StuckError: a process made no progress for `config.stuck_timeout` seconds.
    """
    is_first = jax.process_index() == 0
    say = functools.partial(print, flush=True) if is_first else lambda text: None
    # On an error, the other processes are notified first. Then every callback of `ending` runs.
    report = functools.partial(print, "error:", file=sys.stderr, flush=True)
    processes = Group(heartbeat_timeout, report, config.stuck_timeout)
    with processes as group, contextlib.ExitStack() as ending, group.together():
        # Runs last: jax would terminate processes that wait at exit for one that is still uploading.
        ending.push(lambda error, *_: None if error else group.meet("end"))
        session, start = open_session(
            config, workdir, group, ending, stop_after, say, reader or warm_start.TorchReader(), peak_flops,
            profile_steps,
        )  # fmt: skip
        loop = Loop(session)
        state, metrics, stopped = loop.run(start)
        with group.progress.phase("saving"):
            _finish(session, int(state.step), stopped)
        session.reporter.scalars(int(state.step), session.clock.metrics())
        session.reporter.say(sessions.summary(session.clock.sessions()))
    if stopped is not None:
        print(f"{stopped}; run the same command to resume", flush=True)
        return state
    step, best = session.checkpoints.best() or (int(state.step), math.nan)
    metric = "" if config.best_metric == BEST_METRIC else f"{config.best_metric} "
    if skipped := session.safety.summary():
        say(skipped)
    say(
        f"done: step {int(state.step)}, val/total_loss {metrics['total_loss']:.4f} (best {metric}{best:.4f}, of "
        f"checkpoint {step}). Checkpoints, samples and TensorBoard events are in {printable(session.workdir)}"
    )
    return state


def _finish(session, step, stopped):
    """Wait for the last checkpoint, and record the best model of an ended run.

    `step` is the step of that checkpoint.
    """
    checkpoints, group, config = session.checkpoints, session.group, session.config
    # A stopped run does not wait to retry a failed save.
    session.saving.finish(lambda: stopped is not None or group.is_asked_to_stop)
    group.meet("saved")  # only the first process waits for uploads to a bucket
    session.lock.require_held()
    if stopped is None and step not in checkpoints.steps():
        raise TrainingError(f"the last checkpoint is not in {session.workdir}: something else deleted or moved it")
    if stopped is None:
        session.reporter.finish(functools.partial(_save_best, config, session.workdir))


def _save_best(config, workdir, path):
    """Write the best checkpoint as a saved model.

    Its metadata has the step and the validation metrics.
    """
    loaded = saved_model.open_model(workdir)
    metadata = {name: value for name, value in loaded.metadata.items() if math.isfinite(value)}
    saved_model.save_loaded(dataclasses.replace(loaded, sample_rate=config.data.sample_rate, metadata=metadata), path)
