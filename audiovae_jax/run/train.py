"""The training loop: `train(config, workdir)`."""

import contextlib
import functools
import math
from pathlib import Path

import jax
import ml_collections
import numpy as np

from audiovae_jax.config import build, configuration
from audiovae_jax.data.files import printable
from audiovae_jax.distributed import stopping
from audiovae_jax.distributed.background import Background
from audiovae_jax.distributed.group import Group
from audiovae_jax.distributed.launch import HEARTBEAT_TIMEOUT
from audiovae_jax.errors import DataError, TrainingError
from audiovae_jax.feeding import pipeline
from audiovae_jax.feeding.wait import Waiting
from audiovae_jax.persistence import hosts, saved_model
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.run import compilation, report, start, warm_start
from audiovae_jax.run.bad_batches import BadBatches
from audiovae_jax.run.bucket_lock import as_workdir, lock_of
from audiovae_jax.run.gan_health import Figures, GanHealth
from audiovae_jax.run.safety import RollBack, Safety
from audiovae_jax.run.samples import Samples
from audiovae_jax.run.saving import Saving
from audiovae_jax.storage.bucket_path import BucketPath
from audiovae_jax.tracking import recorder
from audiovae_jax.training import mesh, program
from audiovae_jax.training.state import TrainState


def train(
    config: ml_collections.ConfigDict,
    workdir: Path | BucketPath | str,
    *,
    stop_after: float | None = None,
    heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
) -> TrainState:
    """Train as `config` says, or go on where `workdir` stopped.

    SIGTERM, Ctrl-C and `stop_after` end it in good order: it saves and returns, and the same call goes on
    from there to the same bits. Before the first step it clears all caches of jax (see `compilation.forget`).

    Args:
      config: finalized (see `configuration.finalize`).
      workdir: gets `config.json`, `checkpoints/`, TensorBoard events and `samples/`; a folder, or `s3://` or `gs://`.
      stop_after: seconds from now; None for no limit.
      heartbeat_timeout: seconds of silence after which another process of the run counts as dead.

    Returns:
      The last train state, of `config.num_steps` unless it was stopped.

    Raises:
      ConfigError: values that cannot work, or a workdir of another config, in use, or not to be written to.
      DataError: no usable audio.
      CheckpointError: nothing to go on from where there should be, or `max_failed_saves` checkpoints in a row
        could not be written.
      TrainingError: too many updates were NaN or infinite, the workdir was deleted meanwhile, or another process died.
    """
    is_first = jax.process_index() == 0
    say = functools.partial(print, flush=True) if is_first else lambda text: None
    # Whatever fails, the rest of `ending` is done, and the other processes hear of it first.
    with Group(heartbeat_timeout) as group, contextlib.ExitStack() as ending, group.together():
        # The last of all: jax ends the processes that wait for one that is still uploading.
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
            config.data, batch_size=config.batch_size, seed=config.seed, leave_out=(workdir / "samples",)
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
        reporter = report.Reporter(
            workdir,
            start_step=start_step,
            first_step=first_step,
            num_steps=config.num_steps,
            sample_rate=config.data.sample_rate,
            enabled=is_first,
            writers=functools.partial(recorder.open_writers, config, workdir, first_step),
        )
        ending.callback(reporter.close)
        # What goes wrong in another process than the first has no other to say it.
        warn = reporter.say if is_first else functools.partial(print, f"process {jax.process_index()}:", flush=True)
        saving = Saving(checkpoints, config.max_failed_saves, warn)
        kept = BadBatches(workdir, config.data.sample_rate, config.safety.kept_batches, jax.process_index(), warn)
        safety = Safety(config.safety, recipe, kept, reporter.say, position)
        run = _Run(config, recipe, data, devices, checkpoints, saving, reporter, lock, group, safety)
        state, metrics, stopped = run.go(state, start_step, metrics)
        # Who asks for the end may not wait for another attempt.
        saving.finish(lambda: stopped is not None or group.is_asked_to_stop)
        group.meet("saved")  # only the first process has waited for a bucket
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
    """The CPU, not to wait for an accelerator; where JAX_PLATFORMS leaves that out, an accelerator."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


class _Stopped(Exception):
    """The run is to stop, for the reason that it names, and need not wait for what is being computed."""


class _Run:
    """The moving parts of one session of training."""

    def __init__(self, config, recipe, data, devices, checkpoints, saving, reporter, lock, group, safety):
        self._config, self._recipe, self._data, self._safety = config, recipe, data, safety
        self._mesh, self._checkpoints, self._saving = devices, checkpoints, saving
        self._reporter, self._lock = reporter, lock
        self._group, self._saved_at = group, None
        self._config_dict = configuration.plain(config)
        self._programs: dict[tuple[str, bool], Background] = {}
        self._host = _host_device()
        self._train_records = data.train
        # Of the checkpoints alone: what no file holds is nobody's best.
        self._best = (checkpoints.best() or (None, math.inf))[1]
        # On the host and the device once: they are the same at every validation.
        self._validation_rows = [
            mesh.place_batch(devices, rows)
            for rows in self._batches(data.validation, 0, -(-config.data.validation_crops // config.batch_size))
        ]
        # The first process alone hears them: nothing that others take part in may be run for them.
        self._samples = None
        if jax.process_index() == 0:
            self._samples = Samples(data.samples, config.data.num_samples, recipe.model)
        self._health = GanHealth(reporter.say, recipe.kl.warmup_steps)
        self._scalars = program.place_scalars(recipe, devices)

    def go(self, state: TrainState, start_step: int, metrics: dict | None):
        """Run to the end, with as many attempts as that takes.

        Returns:
          `(state, last validation metrics, None)`, or in the place of None why and where it stopped before.
        """
        while True:
            try:
                return self._go_on(state, start_step, metrics)
            except RollBack as reason:
                self._saving.settle()
                said = self._safety.roll_back(reason, max(hosts.of_first(self._checkpoints.steps()), default=None))
            state = None  # both would not fit into memory
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
                # Where it comes from may be better than all that follows.
                self._save(state, start_step, metrics)
        self._train_records = self._data.train.in_order(self._safety.order)
        waiting = Waiting(
            self._batches(self._train_records, start_step, config.num_steps),
            config.data.num_threads, self._reporter.scalars, self._reporter.say,
        )  # fmt: skip
        batch = self._next(waiting, start_step) if start_step < config.num_steps else None
        pending = None
        for current in range(start_step, config.num_steps):
            self._lock.check()
            self._saving.check()
            reason = self._group.stop_reason() or self._compile_ahead(current, state, batch)
            if reason is not None:
                self._show(pending)
                pending = None
                # Amid skipped updates is no place to go back to; it ends at the next that is made, or by going back.
                if self._safety.is_whole or current == start_step:
                    return state, metrics, self._stop(state, start_step, current, reason)
            state, new = self._train_step(current, state, batch)(state, batch, self._scalars)
            new_pending = (current + 1, new, batch)
            # While the device computes: the next batch, and the metrics of the step before.
            if current + 1 < config.num_steps:
                batch = self._next(waiting, current, new["total_g_loss"].is_ready)
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
        """Save, and say so. The checkpoint has no loss, since it is one that a run left alone has not validated."""
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
        self._reporter.flush()  # or a kill after the checkpoint loses what came before it
        position = {"step": done, "fingerprint": self._data.fingerprint, **self._safety.position()}
        self._saving.save(state, step=done, config=self._config_dict, data=position, metrics=metrics)

    def _is_due(self, done, every):
        return done == self._config.num_steps or done % every == 0

    def _compile_ahead(self, current, state, batch):
        """Compile all that step `current` and what is due after it need; returns why to stop, if the run is to.

        A stop while compiling is then one between two steps.
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
        """A function of `arguments` and scalars, compiled once, in a thread; with `may_stop` it raises _Stopped."""
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
        """Those of the updates at a step, by their names in the events; on the CPU, not to wait for the device."""
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
        if report.is_recorded(done):
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
        # The first process alone has any; all of them come here, to stop together.
        call = Background(lambda: self._samples and self._samples.reconstruct(state.variables))
        reason = self._group.stop_reason_after(call) if may_stop else None
        if reason is not None:
            raise _Stopped(reason)
        try:
            samples = call.result()
        except DataError as error:  # nothing that training needs
            self._reporter.say(f"warning: there are no samples of step {at}: {error}")
            return
        if samples is not None:
            self._reporter.samples(at, samples)

    def _next(self, waiting, step, is_idle=lambda: True):
        return mesh.place_batch(self._mesh, waiting.next(step, is_idle))

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
