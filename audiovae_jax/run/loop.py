"""The training loop."""

import contextlib
import math

import jax

from audiovae_jax.config import build, configuration
from audiovae_jax.data.feeding.stalls import StallMeter
from audiovae_jax.distributed import agreement, mesh
from audiovae_jax.persistence.checkpoint import as_loss, comparable_loss
from audiovae_jax.run.programs import Programs, Stopped
from audiovae_jax.run.reporter import is_recorded, peak_memory
from audiovae_jax.run.safety import RollBack
from audiovae_jax.run.saving import SaveTimer
from audiovae_jax.run.start import Session, Start
from audiovae_jax.run.validation import EarlyStopping, Validation
from audiovae_jax.training import program
from audiovae_jax.training.state import TrainState


class Loop:
    """Trains to the last step or an early stop: step, report, validate, sample, save.

    The device computes a step while this process loads the next batch and reports the previous step.

    Args:
      session: the run.
    """

    def __init__(self, session: Session):
        self._session, self._config, self._reporter = session, session.config, session.reporter
        intervals = ("generator_update_every", "discriminator_update_every", "accumulation_steps")
        are_equal = all(session.config[key] == 1 for key in intervals)  # a loop's operations are counted once
        self._programs = Programs(
            session.recipe, session.devices, session.group, session.reporter.timed,
            count_flops=session.peak_flops is not None and are_equal,
        )  # fmt: skip
        seconds = session.config.batch_size * session.config.data.crop_length / session.config.data.sample_rate
        self._reporter.rate("perf/audio_seconds_per_second", seconds)
        self._validation = Validation(session, self._programs)
        self._timer = SaveTimer(session.config.checkpoint_every_minutes, session.group)
        self._records, self._saved_at, self._best = session.data.train, None, self._best_saved()

    def run(self, start: Start) -> tuple[TrainState, dict[str, float] | None, str | None]:
        """Train to the last step or an early stop, with rollbacks when needed.

        Returns:
          `(state, last validation metrics, stop message)`. The message is None unless the run was asked to stop. It
          gives the step and the reason.
        """
        while True:
            self._stopping = EarlyStopping(self._config.early_stopping, start.position)
            try:
                with contextlib.ExitStack() as ending:
                    return self._train(*start[:3], ending)
            except RollBack as reason:
                self._session.saving.settle()
                # The loss of an unvalidated checkpoint may not be finite. Its step also depends on the time.
                if moved := self._session.checkpoints.set_aside_unvalidated():
                    self._reporter.say(f"checkpoints without a validation moved to damaged_checkpoints/: {moved}")
                newest = max(agreement.of_first(self._session.checkpoints.steps()), default=None)
                report = self._session.safety.roll_back(reason, newest)
            start = None  # free the old state first: two states may not fit into memory
            start = self._session.restore()
            self._best = self._best_saved()
            self._reporter.rewind(start.step, first_step=start.first_step)
            self._reporter.say(report)

    def _train(self, state, start_step, metrics, ending):
        config, session, safety = self._config, self._session, self._session.safety
        if metrics is None:
            # Beside the validation, which is compiled and run meanwhile.
            batch = program.abstract_batch(session.devices, build.batch_shape(config))
            self._programs.begin_step(start_step, state, batch)
            try:
                metrics = self._first_validation(state, start_step)
            except Stopped as stopped:
                return state, metrics, self._stop(state, start_step, start_step, str(stopped))
            if config.init_from is not None:
                # The initial model may be better than every later checkpoint.
                self.save(state, start_step, metrics)
        elif metrics and start_step < config.num_steps and (reason := self._stopping.reason()):
            self._reporter.say(reason)
            return state, metrics, None
        self._timer.restart()
        self._records = session.data.train.in_order(safety.order)
        batches = session.batches(self._records, start_step, config.num_steps)
        ending.callback(batches.close)  # here, because the traceback of an error keeps the iterator
        stalls = StallMeter(
            batches, config.data.num_threads, self._reporter.scalars, self._reporter.say, session.group.slowest,
        )  # fmt: skip
        batch = self.next_batch(stalls, start_step) if start_step < config.num_steps else None
        pending = None  # the step whose metrics are not reported yet
        for step in range(start_step, config.num_steps):
            session.lock.check()
            session.saving.check()
            reason = session.group.stop_reason() or self._compile_ahead(step, state, batch)
            if reason is not None:
                pending = self._report(pending)
                # Never save while updates are being skipped. The run stops after the next applied update or rollback.
                if safety.is_whole or step == start_step:
                    return state, metrics, self._stop(state, start_step, step, reason)
            if session.trace.starts(step):
                pending = self._report(pending)
                with session.group.progress.phase("profiling"):
                    session.trace.start(step)
            session.group.progress.step(step + 1)
            with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
                state, new = self._programs.step(step, state, batch)(state, batch)
            done, now = step + 1, (step + 1, new, batch)
            if done < config.num_steps:
                batch = self.next_batch(stalls, step, new["total_g_loss"].is_ready)
            self._report(pending)
            pending = now
            if session.trace.ends(done):
                pending = self._report(pending)
                with session.group.progress.phase("profiling"):
                    session.trace.close()
            timed_checkpoint_due = self._timer.is_due(done) or session.saving.is_due_again()
            checkpoint_due = self._is_due(done, config.checkpoint_every) or (
                timed_checkpoint_due and session.saving.owes_validated
            )
            validation_due = self._is_due(done, config.validate_every)
            if checkpoint_due or validation_due or timed_checkpoint_due or not safety.is_whole:
                pending = self._report(pending)
            checkpoint_due = safety.may_save(checkpoint_due) or done == config.num_steps
            early = None
            if checkpoint_due or validation_due:
                metrics = self._validation.validate(state, done)
                self._stopping.see(metrics, done)
                # Never stop while updates are being skipped, since the state is not saved then.
                early = self._stopping.reason() if safety.is_whole and done < config.num_steps else None
            if self._diagnosis_due(done):
                self._validation.diagnose(state, done)
            if self._is_due(done, config.sample_every) or early:
                self._validation.sample(state, done)
            if checkpoint_due or early:
                self.save(state, done, metrics)
            elif timed_checkpoint_due and safety.is_whole:
                self.save(state, done, {})  # not validated, so that it cannot be the best
            if early:
                self._reporter.say(early)
                break
        self._report(pending)
        return state, metrics, None

    def next_batch(self, stalls, step, is_idle=lambda: True):
        """Return the next training batch, placed on the devices."""
        progress, before = self._session.group.progress, stalls.overlapped
        with progress.phase("reading"):
            rows = stalls.next(step, is_idle)
        progress.move(stalls.overlapped - before, "reading", "step")
        return mesh.place_batch(self._session.devices, rows)

    def save(self, state, at, metrics):
        """Start saving a checkpoint of `at` steps, with its validation metrics."""
        session = self._session
        session.lock.require_held()
        self._saved_at = at
        self._timer.saved()
        if (health := session.data.health) is not None:
            self._reporter.scalars(
                at, {"data/bad_files": health.bad_files, "data/replaced_crops": health.replaced_crops}
            )
        if metrics:
            name = self._config.best_metric
            self._best = min(self._best, comparable_loss(metrics, name))
            if math.isfinite(self._best):
                metrics = {**metrics, f"best_{name}": as_loss(name, self._best)}
                self._reporter.scalars(at, {f"val/best_{name}": as_loss(name, self._best)})
        self._reporter.scalars(at, session.clock.metrics())
        self._reporter.flush()  # a kill after the checkpoint would lose earlier records
        position = {"step": at, "fingerprint": session.data.fingerprint, **session.safety.position()}
        position |= self._stopping.position()
        config = configuration.plain(self._config)
        with session.group.progress.phase("saving"):
            session.saving.save(state, step=at, config=config, data=position, metrics=metrics)
        session.clock.write()

    def _best_saved(self):
        """Return the best loss among existing checkpoints.

        A loss without a checkpoint does not count.
        """
        best = self._session.checkpoints.best()
        return math.inf if best is None else as_loss(self._config.best_metric, best[1])

    def _first_validation(self, state, at):
        self._validation.compile(state)
        with self._reporter.timed("running the first validation"):
            metrics = self._validation.validate(state, at)
            self._stopping.see(metrics, at)
            if self._config.init_from is not None:  # an untrained model would make noise
                self._validation.sample(state, at, may_stop=True)
        return metrics

    def _stop(self, state, start_step, at, reason):
        """Save a checkpoint if there are new steps, and return the message to print.

        The checkpoint has no loss, because an uninterrupted run would not validate at this step.
        """
        if at == start_step:
            saved = "no new steps to save" if self._session.checkpoints.steps() else "nothing to save yet"
            return f"stopped at step {at} after {reason}: {saved}"
        if self._saved_at != at:
            self.save(state, at, {})
        return f"stopped at step {at} after {reason}: saved"

    def _is_due(self, done, every):
        return done == self._config.num_steps or done % every == 0

    def _diagnosis_due(self, done):
        return bool(self._config.diagnose_every) and done % self._config.diagnose_every == 0

    def _compile_ahead(self, step, state, batch):
        """Compile the programs that the next step needs.

        These include the validation or diagnosis that is due after it. A stop request during compilation then takes
        effect between two steps.

        Returns:
          The reason to stop, or None.
        """
        config, done = self._config, step + 1
        try:
            self._programs.step(step, state, batch, may_stop=True)
            if self._is_due(done, config.checkpoint_every) or self._is_due(done, config.validate_every):
                self._validation.compile(state)
            if self._diagnosis_due(done):
                self._validation.compile_diagnosis(state, done)
        except Stopped as stopped:
            return str(stopped)
        return None

    def _report(self, pending):
        """Report the metrics of a step, and check them. Returns None, the new `pending`."""
        if pending is None:
            return
        done, metrics, batch = pending
        metrics = {f"train/{name}": float(value) for name, value in jax.device_get(metrics).items()}
        batch_size, host, safety = self._config.batch_size, jax.process_index(), self._session.safety
        first = (done - 1) * batch_size + host * (batch_size // jax.process_count())
        counts = safety.see(done, metrics, lambda: mesh.local_rows(batch), first, self._records)
        if is_recorded(done):
            counts |= peak_memory(jax.local_devices())
            if self._programs.flops is not None:
                share = self._programs.flops / self._session.peak_flops
                self._reporter.rate("perf/share_of_peak_flops", share)
        self._reporter.step(done, metrics | counts)
        self._session.clock.update()
        safety.require_progress()
