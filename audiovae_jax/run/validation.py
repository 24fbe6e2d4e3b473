"""Measurements between training steps, and the early stop.

Measured are validation losses, the diagnosis and samples.
"""

import math

import jax
import numpy as np

from audiovae_jax.distributed import mesh
from audiovae_jax.distributed.background import Background
from audiovae_jax.errors import DataError
from audiovae_jax.persistence.checkpoint import as_loss, comparable_loss
from audiovae_jax.run.programs import Programs, wait_for
from audiovae_jax.run.samples import Samples
from audiovae_jax.run.start import Session
from audiovae_jax.training.gan_health import Figures, GanHealth
from audiovae_jax.training.state import TrainState


class Validation:
    """Measures a train state and reports the measurements.

    The validation batches are loaded and placed on the devices once, since every validation uses the same ones.

    Args:
      session: the run.
      programs: its compiled programs.
    """

    def __init__(self, session: Session, programs: Programs):
        config, self._programs, self._session = session.config, programs, session
        self._reporter, self._progress = session.reporter, session.group.progress
        batches = session.batches(session.data.validation, 0, -(-config.data.validation_crops // config.batch_size))
        with self._progress.phase("reading"):
            self._batches = [mesh.place_batch(session.devices, rows) for rows in batches]
        # Only the first process makes samples, so this must not involve a collective operation.
        self._samples = None
        if jax.process_index() == 0:
            self._samples = Samples(session.data.samples, config.data.num_samples, session.recipe.model)
        self._health = GanHealth(session.reporter.say, session.recipe.kl.warmup_steps)

    def compile(self, state: TrainState):
        """Compile the validation.

        Raises:
          Stopped: the run was asked to stop meanwhile.
        """
        self._programs.validation(state.validation_variables, self._batches[0], may_stop=True)

    def compile_diagnosis(self, state: TrainState, at: int):
        """Compile the diagnosis of the last of `at` steps; see `compile`."""
        self._programs.diagnosis(at, state, self._batches[0], may_stop=True)

    def validate(self, state: TrainState, at: int) -> dict[str, float]:
        """Return the mean losses of the validation crops after `at` steps.

        Raises:
          TrainingError: the total loss is not finite, and a rollback cannot help.
          RollBack: the total loss is not finite.
        """
        variables = state.validation_variables
        validate = self._programs.validation(variables, self._batches[0])
        results = self._measure(lambda rows: validate(variables, rows)[0])
        metrics = {name: float(np.mean([result[name] for result in results])) for name in results[0]}
        self._session.safety.require_finite_validation(at, metrics["total_loss"])
        self._reporter.scalars(at, {f"val/{name}": value for name, value in metrics.items()})
        shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in ("total_loss", "reconstruction_loss", "si_sdr_db"))
        self._reporter.say(f"step {at}: validation {shown}{self._reporter.pace}")
        return metrics

    def diagnose(self, state: TrainState, at: int):
        """Report the diagnosis of the generator and the discriminator, with warnings."""
        diagnose = self._programs.diagnosis(at, state, self._batches[0])
        figures = Figures.of(self._measure(lambda rows: diagnose(state, rows)))
        metrics, warnings = self._health.check(at, figures)
        self._reporter.scalars(at, metrics)
        for warning in warnings:
            self._reporter.text(at, "health/warnings", warning)

    def sample(self, state: TrainState, at: int, *, may_stop: bool = False):
        """Reconstruct and record the samples.

        All processes call this, so that all stop together.

        Raises:
          Stopped: with `may_stop`, the run was asked to stop meanwhile.
        """
        call = Background(lambda: self._samples and self._samples.reconstruct(state.evaluation_variables))
        with self._progress.phase("sampling"):
            try:
                samples = self._progress.made(wait_for(call, self._session.group, may_stop))
            except DataError as error:  # training does not need samples
                self._reporter.say(f"warning: the samples of step {at} were not made: {error}")
                return
            if samples is not None:
                self._reporter.samples(at, samples)

    def _measure(self, call):
        """Return `call(rows)` of each validation batch, on the host."""
        made = self._progress.made
        with self._progress.phase("validating"):
            running = [made(call(rows)) for rows in self._batches]
            return [made(jax.device_get(result)) for result in running]


class EarlyStopping:
    """Decides from the validations whether a run ends before its last step.

    The metrics are the same in all processes, so all decide the same.

    Args:
      config: the section `early_stopping`.
      position: position of the checkpoint that the run resumes from; empty for a new run.
    """

    def __init__(self, config, position: dict):
        self._config = config
        self._best, self._best_step, self._since = None, None, 0
        if config.patience and (saved := position.get("early_stopping", {})).get("metric") == config.metric:
            self._best, self._best_step, self._since = saved["best"], saved["best_step"], saved["since"]

    def see(self, metrics: dict[str, float], step: int):
        """Process the metrics of a validation after `step` steps."""
        loss = comparable_loss(metrics, self._config.metric)
        if math.isfinite(loss) and (self._best is None or loss < self._best - self._config.min_delta):
            self._best, self._best_step, self._since = loss, step, 0
        else:
            self._since += 1

    def reason(self) -> str | None:
        """Return why the run ends, or None if it does not."""
        if not self._config.patience or self._since < self._config.patience:
            return None
        name = self._config.metric
        best = "" if self._best is None else f" (best {as_loss(name, self._best):.4f}, at step {self._best_step})"
        return f"stopping early: val/{name} has not improved in {self._since} validations{best}"

    def position(self) -> dict:
        """Return the state to save in a checkpoint; empty if early stopping is disabled."""
        if not self._config.patience:
            return {}
        state = {"best": self._best, "best_step": self._best_step, "since": self._since}
        return {"early_stopping": {"metric": self._config.metric, **state}}
