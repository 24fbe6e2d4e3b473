"""The training loop: `train(config, workdir)`."""

import contextlib
import functools
import math
import sys
from pathlib import Path

import jax
import ml_collections
import numpy as np

from audiovae_jax.config import build, configuration
from audiovae_jax.data.feeding import pipeline
from audiovae_jax.data.feeding.stalls import StallMeter
from audiovae_jax.distributed import agreement, mesh, stopping
from audiovae_jax.distributed.background import Background
from audiovae_jax.distributed.group import Group
from audiovae_jax.distributed.launch import HEARTBEAT_TIMEOUT
from audiovae_jax.errors import DataError, TrainingError, printable
from audiovae_jax.persistence import saved_model
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.run import start, warm_start
from audiovae_jax.run.bad_batches import BadBatches
from audiovae_jax.run.bucket_lock import as_workdir, lock_of
from audiovae_jax.run.gan_health import Figures, GanHealth
from audiovae_jax.run.reporter import Reporter, is_recorded
from audiovae_jax.run.safety import RollBack, Safety
from audiovae_jax.run.samples import Samples
from audiovae_jax.run.saving import Saving
from audiovae_jax.run.tracking import recorder
from audiovae_jax.storage.bucket_path import BucketPath
from audiovae_jax.training import compilation, program
from audiovae_jax.training.state import TrainState


def train(
    config: ml_collections.ConfigDict,
    workdir: Path | BucketPath | str,
    *,
    stop_after: float | None = None,
    heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
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

    Returns:
      The last train state, at step `config.num_steps` unless the run was stopped.

    Raises:
      ConfigError: the config is invalid, or the workdir belongs to another config, is in use or is not writable.
      DataError: there is no usable audio.
      CheckpointError: there is no usable checkpoint to resume from, or `max_failed_saves` checkpoints in a row could
        not be written.
      TrainingError: too many updates were NaN or infinite, the workdir was deleted during the run, or another process
        died.
    """
    is_first = jax.process_index() == 0
    say = functools.partial(print, flush=True) if is_first else lambda text: None
    # On an error, the other processes are notified first. Then every callback of `ending` runs.
    with Group(heartbeat_timeout) as group, contextlib.ExitStack() as ending, group.together():
        # Runs last: jax would terminate processes that wait at exit for one that is still uploading.
        ending.push(lambda error, *_: None if error else group.meet("end"))
        configuration.check(config, jax.device_count())
        recorder.check(config)
        group.meet("config", same=start.what_all_share(config))
        workdir = as_workdir(workdir)
        lock = lock_of(workdir, enabled=is_first)
        taken_from = lock.acquire()
        ending.callback(lock.release)
        group.before_exit(lock.release)
        ending.enter_context(stopping.requests(group.ask_to_stop, stop_after, at_once=lock.release))
        if taken_from is not None:
            say(f"taking {workdir} over from a run that ended without a word: {taken_from}")
        token = group.meet("workdir", tell=lock.token)
        if not is_first:
            lock.require_shared(token)
        checkpoints = Checkpoints(workdir / "checkpoints", still_ours=lock.is_held, kept=config.checkpoints_kept)
        ending.callback(checkpoints.close)
        if config.init_from is not None and not checkpoints.steps():
            warm_start.require_same_model(config)
        recipe = build.build_recipe(config)
        data = pipeline.open_data(
            config.data,
            batch_size=config.batch_size,
            seed=config.seed,
            leave_out=(workdir / "samples",),
            warn=functools.partial(print, "warning:", file=sys.stderr),
        )
        start.claim_workdir(config, workdir, checkpoints, write=is_first)
        if data.health is not None:
            data.health.list_in(workdir / (start.BAD_FILES if is_first else f"bad_files.{jax.process_index()}.jsonl"))
        group.meet("data", same={"what the audio is": data.fingerprint})
        devices = mesh.make_mesh()
        say("\n".join(start.describe(config, recipe, data)))
        state, start_step, metrics, position = start.initial_state(
            config, recipe, devices, checkpoints, data.fingerprint, say
        )
        compilation.forget()
        group.meet("state", same={"checkpoint to go on from": start_step})
        first_step = start_step if metrics is None else start_step + 1
        reporter = Reporter(
            workdir,
            start_step=start_step,
            first_step=first_step,
            num_steps=config.num_steps,
            sample_rate=config.data.sample_rate,
            enabled=is_first,
            writers=functools.partial(recorder.open_writers, config, workdir, first_step),
        )
        ending.callback(reporter.close)
        # The reporter is disabled in the other processes, so they print their own warnings.
        warn = reporter.say if is_first else functools.partial(print, f"process {jax.process_index()}:", flush=True)
        saving = Saving(checkpoints, config.max_failed_saves, warn)
        kept = BadBatches(workdir, config.data.sample_rate, config.safety.kept_batches, jax.process_index(), warn)
        safety = Safety(config.safety, recipe, kept, reporter.say, position)
        run = _Run(config, recipe, data, devices, checkpoints, saving, reporter, lock, group, safety)
        state, metrics, stopped = run.go(state, start_step, metrics)
        # A stopped run does not wait to retry a failed save.
        saving.finish(lambda: stopped is not None or group.is_asked_to_stop)
        group.meet("saved")  # only the first process waits for uploads to a bucket
        lock.require_held()
        if stopped is None and config.num_steps not in checkpoints.steps():
            raise TrainingError(f"the last checkpoint is not in {workdir}: something else deleted or moved it")
        if stopped is None:
            reporter.finish(functools.partial(_save_best, config, workdir))
    if stopped is not None:
        print(f"{stopped}; the same command goes on from there", flush=True)
        return state
    step, loss = checkpoints.best() or (config.num_steps, math.nan)
    if skipped := safety.summary():
        say(skipped)
    say(
        f"done: step {config.num_steps}, val/total_loss {metrics['total_loss']:.4f} (best {loss:.4f}, of checkpoint "
        f"{step}). Checkpoints, samples and TensorBoard events are in {printable(workdir)}"
    )
    return state


def _save_best(config, workdir, path):
    model, variables = saved_model.load_model(workdir)
    saved_model.save_model(model, variables, path, sample_rate=config.data.sample_rate)


def _host_device():
    """Return the CPU device, or an accelerator if JAX_PLATFORMS excludes the CPU.

    Computing on the CPU does not wait for the accelerator's queue.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


class _Stopped(Exception):
    """Raised to stop the run without waiting for a call; its text is the reason."""


class _Run:
    """One session of training: the loop and the objects that it uses."""

    def __init__(self, config, recipe, data, devices, checkpoints, saving, reporter, lock, group, safety):
        self._config, self._recipe, self._data, self._safety = config, recipe, data, safety
        self._mesh, self._checkpoints, self._saving = devices, checkpoints, saving
        self._reporter, self._lock = reporter, lock
        self._group, self._saved_at = group, None
        self._config_dict = configuration.plain(config)
        self._programs: dict[tuple[str, bool], Background] = {}
        self._host = _host_device()
        self._train_records = data.train
        # The best loss among existing checkpoints. A loss without a checkpoint does not count.
        self._best = (checkpoints.best() or (None, math.inf))[1]
        # Loaded and placed on the devices once, since every validation uses the same rows.
        self._validation_rows = [
            mesh.place_batch(devices, rows)
            for rows in self._batches(data.validation, 0, -(-config.data.validation_crops // config.batch_size))
        ]
        # Only the first process makes samples, so this must not involve a collective operation.
        self._samples = None
        if jax.process_index() == 0:
            self._samples = Samples(data.samples, config.data.num_samples, recipe.model)
        self._health = GanHealth(reporter.say, recipe.kl.warmup_steps)
        self._scalars = program.place_scalars(recipe, devices)

    def go(self, state: TrainState, start_step: int, metrics: dict | None):
        """Train to the last step, rolling back to a checkpoint when needed.

        Returns:
          `(state, last validation metrics, stop message)`. The message is None unless the run was stopped early. It
          gives the step and the reason.
        """
        while True:
            try:
                return self._go_on(state, start_step, metrics)
            except RollBack as reason:
                self._saving.settle()
                said = self._safety.roll_back(reason, max(agreement.of_first(self._checkpoints.steps()), default=None))
            state = None  # free the old state first: two states may not fit into memory
            state, start_step, metrics, _ = start.initial_state(
                self._config, self._recipe, self._mesh, self._checkpoints, self._data.fingerprint, self._reporter.say
            )
            self._best = (self._checkpoints.best() or (None, math.inf))[1]
            self._reporter.rewind(start_step, first_step=start_step if metrics is None else start_step + 1)
            self._reporter.say(said)

    def _go_on(self, state, start_step, metrics):
        config = self._config
        if metrics is None:
            try:
                self._validation(state, may_stop=True)
                with self._reporter.timed("running the first validation"):
                    metrics = self._validate(state, start_step)
                    self._sample(state, start_step, may_stop=True)
            except _Stopped as stopped:
                return state, metrics, self._stop(state, start_step, start_step, str(stopped))
            if config.init_from is not None:
                # The initial model may be better than every later checkpoint.
                self._save(state, start_step, metrics)
        self._train_records = self._data.train.in_order(self._safety.order)
        stalls = StallMeter(
            self._batches(self._train_records, start_step, config.num_steps),
            config.data.num_threads, self._reporter.scalars, self._reporter.say,
        )  # fmt: skip
        batch = self._next(stalls, start_step) if start_step < config.num_steps else None
        pending = None
        for current in range(start_step, config.num_steps):
            self._lock.check()
            self._saving.check()
            reason = self._group.stop_reason() or self._compile_ahead(current, state, batch)
            if reason is not None:
                self._show(pending)
                pending = None
                # Never save while updates are being skipped. The run stops after the next applied update or rollback.
                if self._safety.is_whole or current == start_step:
                    return state, metrics, self._stop(state, start_step, current, reason)
            state, new = self._train_step(current, state, batch)(state, batch, self._scalars)
            new_pending = (current + 1, new, batch)
            # Load the next batch and report the previous step while the device computes.
            if current + 1 < config.num_steps:
                batch = self._next(stalls, current, new["total_g_loss"].is_ready)
            self._show(pending)
            pending = new_pending
            done = current + 1
            last = done == config.num_steps
            checkpoint_due = self._is_due(done, config.checkpoint_every) or self._saving.is_due_again()
            validation_due = self._is_due(done, config.validate_every)
            if checkpoint_due or validation_due or not self._safety.is_whole:
                self._show(pending)
                pending = None
            checkpoint_due = self._safety.may_save(checkpoint_due) or last
            if checkpoint_due or validation_due:
                metrics = self._validate(state, done)
            if config.diagnose_every and done % config.diagnose_every == 0:
                self._diagnose(state, done)
            if self._is_due(done, config.sample_every):
                self._sample(state, done)
            if checkpoint_due:
                self._save(state, done, metrics)
        self._show(pending)
        return state, metrics, None

    def _stop(self, state, start_step, at, reason):
        """Save a checkpoint if there are new steps, and return the message to print.

        The checkpoint has no loss, because an uninterrupted run would not validate at this step.
        """
        if at == start_step:
            saved = "nothing new to save" if self._checkpoints.steps() else "nothing to save yet"
            return f"stopped at step {at} after {reason}: {saved}"
        if self._saved_at != at:
            self._save(state, at, {})
        return f"stopped at step {at} after {reason}: saved"

    def _save(self, state, done, metrics):
        self._lock.require_held()
        self._saved_at = done
        self._best = min(self._best, metrics.get("total_loss", math.inf))
        if self._data.health is not None:
            found = {
                "data/bad_files": self._data.health.bad_files,
                "data/replaced_crops": self._data.health.replaced_crops,
            }
            self._reporter.scalars(done, found)
        if metrics:
            metrics = {**metrics, "best_total_loss": self._best}
            self._reporter.scalars(done, {"val/best_total_loss": self._best})
        self._reporter.flush()  # a kill after the checkpoint would lose earlier records
        position = {"step": done, "fingerprint": self._data.fingerprint, **self._safety.position()}
        self._saving.save(state, step=done, config=self._config_dict, data=position, metrics=metrics)

    def _is_due(self, done, every):
        return done == self._config.num_steps or done % every == 0

    def _compile_ahead(self, current, state, batch):
        """Compile the programs for step `current` and before it runs.

        This includes a validation or diagnosis that is due after it. A stop request during compilation then takes
        effect between two steps.

        Returns:
          The reason to stop, or None.
        """
        config, done = self._config, current + 1
        try:
            self._train_step(current, state, batch, may_stop=True)
            if self._is_due(done, config.checkpoint_every) or self._is_due(done, config.validate_every):
                self._validation(state, may_stop=True)
            if config.diagnose_every and done % config.diagnose_every == 0:
                self._diagnosis(done, state, may_stop=True)
        except _Stopped as stopped:
            return str(stopped)
        return None

    def _train_step(self, current, state, batch, may_stop=False):
        adversarial = self._is_adversarial(current)
        function = functools.partial(program.map_step, self._recipe, self._mesh, adversarial)
        return self._compiled("the step", adversarial, function, (state, batch), may_stop)

    def _validation(self, state, may_stop=False):
        function = functools.partial(program.map_validation, self._recipe, self._mesh)
        return self._compiled("the validation", False, function, (state.variables, self._validation_rows[0]), may_stop)

    def _diagnosis(self, at, state, may_stop=False):
        adversarial = self._is_adversarial(at - 1)
        function = functools.partial(program.map_diagnosis, self._recipe, self._mesh, adversarial)
        return self._compiled("the diagnosis", adversarial, function, (state, self._validation_rows[0]), may_stop)

    def _is_adversarial(self, current):
        return self._recipe.adversarial is not None and self._recipe.adversarial.is_active(current)

    def _compiled(self, name, adversarial, mapped, arguments, may_stop):
        """Return `mapped()` compiled for `arguments` and the scalars.

        Each program is compiled once, in a background thread. With `may_stop`, a stop request raises _Stopped without
        waiting for the compiler.
        """
        key = (name, adversarial)
        if key in self._programs and not self._programs[key].is_alive():
            return self._programs[key].result()
        with self._reporter.timed(f"compiling {name}" + (" with discriminator" if adversarial else "")):
            if key not in self._programs:
                self._programs[key] = Background(lambda: compilation.compiled(mapped(), *arguments, self._scalars))
            reason = self._group.stop_reason_after(self._programs[key]) if may_stop else None
            if reason is not None:
                raise _Stopped(reason)
            return self._programs[key].result()

    def _diagnose(self, state, at):
        rows = self._validation_rows
        diagnose = self._diagnosis(at, state)
        figures = Figures.of(jax.device_get([diagnose(state, batch, self._scalars) for batch in rows]))
        metrics, warnings = self._health.look(at, figures)
        self._reporter.scalars(at, metrics)
        for warning in warnings:
            self._reporter.text(at, "health/warnings", warning)

    def _learning_rates(self, at):
        """Return the learning rates of the updates at step `at`, by event name.

        They are computed on the CPU so as not to wait for the accelerator.
        """
        recipe = self._recipe
        optimizers = {"learning_rate": recipe.optimizer}
        if recipe.adversarial is not None and recipe.adversarial.is_active(at):
            optimizers["discriminator_learning_rate"] = recipe.discriminator_optimizer
        with jax.default_device(self._host):
            return {f"train/{name}": float(each.learning_rate_at(at)) for name, each in optimizers.items()}

    def _show(self, pending):
        if pending is None:
            return
        done, metrics, batch = pending
        metrics = {f"train/{name}": float(value) for name, value in jax.device_get(metrics).items()}
        batch_size, host = self._config.batch_size, jax.process_index()
        first = (done - 1) * batch_size + host * (batch_size // jax.process_count())
        counts = self._safety.see(done, metrics, lambda: mesh.local_rows(batch), first, self._train_records)
        if is_recorded(done):
            counts |= self._learning_rates(done - 1)
        self._reporter.step(done, metrics | counts)
        self._safety.require_progress()

    def _validate(self, state, at):
        validate = self._validation(state)
        results = [validate(state.variables, rows, self._scalars)[0] for rows in self._validation_rows]
        results = jax.device_get(results)
        metrics = {name: float(np.mean([result[name] for result in results])) for name in results[0]}
        self._safety.require_finite_validation(at, metrics["total_loss"])
        self._reporter.scalars(at, {f"val/{name}": value for name, value in metrics.items()})
        shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in ("total_loss", "reconstruction_loss", "si_sdr_db"))
        if (speed := self._reporter.steps_per_second) is not None:
            rates = ", ".join(f"{rate:.3g}" for rate in self._learning_rates(at - 1).values())
            shown += f"; learning rates {rates}; {speed:.3g} steps/s"
        self._reporter.say(f"step {at}: validation {shown}")
        return metrics

    def _sample(self, state, at, may_stop=False):
        # Only the first process makes samples. The others call this too, so that all stop together.
        call = Background(lambda: self._samples and self._samples.reconstruct(state.variables))
        reason = self._group.stop_reason_after(call) if may_stop else None
        if reason is not None:
            raise _Stopped(reason)
        try:
            samples = call.result()
        except DataError as error:  # training does not need samples
            self._reporter.say(f"warning: there are no samples of step {at}: {error}")
            return
        if samples is not None:
            self._reporter.samples(at, samples)

    def _next(self, stalls, step, is_idle=lambda: True):
        return mesh.place_batch(self._mesh, stalls.next(step, is_idle))

    def _batches(self, records, start_step, num_steps):
        return pipeline.batches(
            records,
            batch_size=self._config.batch_size,
            start_step=start_step,
            num_steps=num_steps,
            num_threads=self._config.data.num_threads,
            prefetch_batches=self._config.data.prefetch_batches,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
