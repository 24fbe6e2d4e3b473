"""The training loop: `train(config, workdir)`."""

import contextlib
import functools
import json
import math
from pathlib import Path

import jax
import ml_collections
import numpy as np

from audiovae_jax.config import build, configuration
from audiovae_jax.data.files import printable
from audiovae_jax.errors import ConfigError, TrainingError
from audiovae_jax.feeding import pipeline
from audiovae_jax.feeding.wait import Waiting
from audiovae_jax.persistence import checkpoint, saved_model
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.run import compilation, report, warm_start
from audiovae_jax.run.workdir_lock import WorkdirLock
from audiovae_jax.tracking import recorder
from audiovae_jax.training import mesh, optimizer, step
from audiovae_jax.training.state import TrainState, count_parameters, create_train_state

BAD_FILES = "bad_files.jsonl"  # of a workdir; the other hosts' have their number in the name
_MOST_SKIPPED_SHOWN = 20


def train(config: ml_collections.ConfigDict, workdir: Path) -> TrainState:
    """Train as `config` says, or go on where `workdir` stopped.

    Args:
      config: finalized (see `configuration.finalize`).
      workdir: gets `config.json`, `checkpoints/`, TensorBoard events and `samples/`.

    Returns:
      The final train state.

    Raises:
      ConfigError: values that cannot work, or a workdir of another config, in use, or not to be written to.
      DataError: no usable audio.
      CheckpointError: nothing to go on from where there should be, or a checkpoint could not be written.
      TrainingError: the loss became NaN or infinite, or the workdir was deleted meanwhile.
    """
    configuration.check(config, jax.device_count())
    recorder.check(config)
    is_first = jax.process_index() == 0
    say = functools.partial(print, flush=True) if is_first else lambda text: None
    with contextlib.ExitStack() as ending:  # whatever fails, the rest of it is done
        lock = WorkdirLock(workdir, enabled=is_first)
        taken_from = lock.acquire()
        ending.callback(lock.release)
        if taken_from is not None:
            say(f"taking {workdir} over from a run that ended without a word: {taken_from}")
        recipe = build.build_recipe(config)
        data = pipeline.open_data(
            config.data, batch_size=config.batch_size, seed=config.seed, leave_out=(workdir / "samples",)
        )
        checkpoints = Checkpoints(workdir / "checkpoints", still_ours=lock.is_held)
        ending.callback(checkpoints.close)
        claim_workdir(config, workdir, checkpoints, write=is_first)
        if data.health is not None:
            data.health.list_in(workdir / (BAD_FILES if is_first else f"bad_files.{jax.process_index()}.jsonl"))
        devices = mesh.make_mesh()
        say("\n".join(describe(config, recipe, data)))
        state, start_step, metrics = initial_state(config, recipe, devices, checkpoints, data.fingerprint, say)
        first_step = start_step + 1 if metrics else start_step
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
        run = _Run(config, recipe, data, devices, checkpoints, reporter, lock)
        state, metrics = run.go(state, start_step, metrics)
        checkpoints.wait()
        lock.require_held()
        if config.num_steps not in checkpoints.steps():
            raise TrainingError(f"the last checkpoint is not in {workdir}: something else deleted or moved it")
        reporter.finish(functools.partial(_save_best, config, workdir))
    step, loss = checkpoints.best() or (config.num_steps, math.nan)
    say(
        f"done: step {config.num_steps}, val/total_loss {metrics['total_loss']:.4f} (best {loss:.4f}, of checkpoint "
        f"{step}). Checkpoints, samples and TensorBoard events are in {printable(workdir)}"
    )
    return state


def _save_best(config, workdir, path):
    model, variables = saved_model.load_model(workdir)
    saved_model.save_model(model, variables, path, sample_rate=config.data.sample_rate)


def claim_workdir(config: ml_collections.ConfigDict, workdir: Path, checkpoints: Checkpoints, write: bool):
    """Write `config.json`; where there are checkpoints, compare with the config that they are of first.

    Raises:
      ConfigError: the workdir belongs to another config; the message lists the differing keys.
    """
    path = workdir / "config.json"
    current = json.loads(configuration.to_json(config))
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
                f"--workdir={workdir} holds a run of another config:\n  "
                + "\n  ".join(changed)
                + f"\nuse another --workdir, and --config.init_from={workdir} there to go on from this run"
            )
    if write:
        try:
            checkpoint.write_json(path, current)
        except OSError as error:
            raise ConfigError(f"{path} was not written: {error.strerror or error}") from error


def initial_state(config, recipe, devices, checkpoints: Checkpoints, fingerprint: str, say):
    """`(state, step, validation metrics)` to start from: the workdir's newest checkpoint, `init_from`, or fresh.

    What happens is told to `say`, a line at a time.

    Raises:
      CheckpointError: there are checkpoints, but none is whole.
    """
    sharding = mesh.replicated(devices)
    create = functools.partial(create_train_state, recipe, build.example_shape(config))
    if checkpoints.steps():
        restored = checkpoints.restore(jax.eval_shape(create), sharding)
        for reason in restored.damaged:
            say(f"warning: passed over {reason}")
        say(f"going on from step {restored.step}")
        if restored.data.get("fingerprint") != fingerprint:
            say(
                "warning: the audio under config.data.root is not what it was when this run was stopped; "
                "crops from here on differ from those of a run left alone"
            )
        return restored.state, restored.step, restored.metrics
    with report.timed("compiling and drawing the initial parameters", say):
        state = jax.block_until_ready(compilation.compiled(jax.jit(create, out_shardings=sharding))())
    if config.init_from is None:
        return state, 0, {}
    state = warm_start.take_over(config.init_from, recipe, state, sharding, say)
    if int(state.step) >= config.num_steps:
        raise ConfigError(
            f"config.init_from={config.init_from} is at step {int(state.step)} already; "
            f"raise config.num_steps={config.num_steps} to go on"
        )
    return state, int(state.step), {}


class _Run:
    """The moving parts of one session of training."""

    def __init__(self, config, recipe, data, devices, checkpoints, reporter, lock):
        self._config, self._recipe, self._data = config, recipe, data
        self._mesh, self._checkpoints, self._reporter, self._lock = devices, checkpoints, reporter, lock
        self._config_dict = json.loads(configuration.to_json(config))
        self._compiled = {}
        self._host = jax.local_devices(backend="cpu")[0]
        # Of the checkpoints alone: what no file holds is nobody's best.
        self._best = (checkpoints.best() or (None, math.inf))[1]
        # On the host and the device once: they are the same at every validation.
        self._validation_rows = [
            mesh.place_batch(devices, rows)
            for rows in self._batches(data.validation, 0, -(-config.data.validation_crops // config.batch_size))
        ]
        # Of the last validation, so that samples need no second one.
        self._sampled_batches = -(-config.data.num_samples * jax.process_count() // config.batch_size)
        self._reconstructions, self._reconstructed_at = {}, None
        self._validation_step = mesh.map_validation_step(
            functools.partial(step.validation_step, recipe=recipe), devices
        )

    def go(self, state: TrainState, start_step: int, metrics: dict):
        """Run to the end: `(state, last validation metrics)`."""
        config = self._config
        if not metrics:
            with self._reporter.timed("compiling and running the first validation"):
                metrics = self._validate(state, start_step)
                self._sample(state, start_step)
            if config.init_from is not None:
                # Where it comes from may be better than all that follows.
                self._save(state, start_step, metrics)
        waiting = Waiting(
            self._batches(self._data.train, start_step, config.num_steps),
            config.data.num_threads, self._reporter.scalars, self._reporter.say,
        )  # fmt: skip
        batch = self._next(waiting, start_step) if start_step < config.num_steps else None
        pending = None
        for current in range(start_step, config.num_steps):
            self._lock.check()
            self._checkpoints.check()
            train_step = self._train_step(current, state, batch)
            state, new = train_step(state, batch)
            # While the device computes: the next batch, and the metrics of the step before.
            if current + 1 < config.num_steps:
                batch = self._next(waiting, current, new["total_g_loss"].is_ready)
            self._show(pending)
            pending = (current + 1, new)
            done = current + 1
            last = done == config.num_steps
            checkpoint_due = last or done % config.checkpoint_every == 0
            if checkpoint_due or done % config.validate_every == 0:
                self._show(pending)
                pending = None
                metrics = self._validate(state, done)
            if last or done % config.sample_every == 0:
                self._sample(state, done)
            if checkpoint_due:
                self._save(state, done, metrics)
        self._show(pending)
        return state, metrics

    def _save(self, state, done, metrics):
        self._lock.require_held()
        self._best = min(self._best, metrics["total_loss"])
        if self._data.health is not None:
            found = {
                "data/bad_files": self._data.health.bad_files,
                "data/replaced_crops": self._data.health.replaced_crops,
            }
            self._reporter.scalars(done, found)
        metrics = {**metrics, "best_total_loss": self._best}
        self._reporter.scalars(done, {"val/best_total_loss": self._best})
        self._reporter.flush()  # or a kill after the checkpoint loses what came before it
        position = {"step": done, "fingerprint": self._data.fingerprint}
        self._checkpoints.save(state, step=done, config=self._config_dict, data=position, metrics=metrics)

    def _train_step(self, current, state, batch):
        adversarial = self._recipe.adversarial is not None and self._recipe.adversarial.is_active(current)
        if adversarial not in self._compiled:
            per_device = functools.partial(step.train_step, recipe=self._recipe, adversarial=adversarial)
            what = "compiling the step" + (" with discriminator" if adversarial else "")
            with self._reporter.timed(what):
                mapped = mesh.map_train_step(per_device, self._mesh)
                self._compiled[adversarial] = compilation.compiled(mapped, state, batch)
        return self._compiled[adversarial]

    def _learning_rate(self, at):
        """The generator's, at a step; on the CPU, so that it does not wait for the device, and seldom: it takes time."""
        section = self._config.optimizer
        rate = optimizer.learning_rate_schedule(
            self._config.num_steps, section.learning_rate, section.final_learning_rate
        )
        with jax.default_device(self._host):
            return float(rate(at))

    def _show(self, pending):
        if pending is None:
            return
        done, metrics = pending
        metrics = {f"train/{name}": float(value) for name, value in jax.device_get(metrics).items()}
        if report.is_recorded(done):
            metrics["train/learning_rate"] = self._learning_rate(done - 1)
        for name in ("train/total_g_loss", "train/d_loss", "train/g_grad_norm", "train/d_grad_norm"):
            self._require_finite(name, metrics.get(name, 0.0), done)
        self._reporter.step(done, metrics)

    def _require_finite(self, name, value, at):
        if not math.isfinite(value):
            steps = self._checkpoints.steps()
            saved = f"checkpoint {steps[-1]} is from before" if steps else "there is no checkpoint yet"
            raise TrainingError(
                f"{name} became {value} at step {at}; {saved}. Try a lower config.optimizer.learning_rate, "
                "a smaller clip_norm, or dtype float32"
            )

    def _validate(self, state, at):
        results = []
        self._reconstructions = {}
        for i, rows in enumerate(self._validation_rows):
            result, reconstruction = self._validation_step(state.variables, rows)
            results.append(result)
            if i < self._sampled_batches:
                self._reconstructions[i] = reconstruction
        self._reconstructed_at = at
        results = jax.device_get(results)
        metrics = {name: float(np.mean([result[name] for result in results])) for name in results[0]}
        self._require_finite("val/total_loss", metrics["total_loss"], at)
        self._reporter.scalars(at, {f"val/{name}": value for name, value in metrics.items()})
        shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in ("total_loss", "reconstruction_loss", "si_sdr_db"))
        self._reporter.say(f"step {at}: validation {shown}")
        return metrics

    def _sample(self, state, at):
        if self._reconstructed_at != at:  # a validation has them already
            rows = self._validation_rows[: self._sampled_batches]
            self._reconstructions = {i: self._validation_step(state.variables, row)[1] for i, row in enumerate(rows)}
        originals, reconstructions = [], []
        for i, reconstruction in self._reconstructions.items():
            originals.extend(mesh.local_rows(self._validation_rows[i]))
            reconstructions.extend(mesh.local_rows(reconstruction))
        n = self._config.data.num_samples
        self._reporter.samples(at, originals[:n], reconstructions[:n])

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


def describe(config, recipe, data) -> list[str]:
    """What a run consists of, in lines."""
    shapes = jax.eval_shape(functools.partial(create_train_state, recipe, build.example_shape(config)))
    count = count_parameters(shapes.params)
    with_statistics = count + count_parameters(shapes.latent_statistics)
    lines = [
        f"model: {count:,} parameters ({with_statistics:,} with latent statistics), "
        f"hop {recipe.model.hop_length} samples, {recipe.model.dtype}"
    ]
    if recipe.discriminator is not None:
        lines.append(
            f"discriminator: {type(recipe.discriminator).__name__}, "
            f"{count_parameters(shapes.discriminator_params):,} trainable parameters"
        )
        if config.adversarial.warmup_steps >= config.num_steps:
            lines.append("warning: config.adversarial.warmup_steps is not below num_steps: it will never take part")
    seconds = config.data.crop_length / config.data.sample_rate
    lines.append(
        f"batch: {config.batch_size} crops of {config.data.crop_length} samples ({seconds:.2f} s) "
        f"on {jax.device_count()} {jax.devices()[0].platform} device(s)"
    )
    if data.catalog is None:
        lines.append("data: built-in music generator (config.data.root is not set)")
        return lines
    found = data.catalog
    minutes = sum(track.seconds for track in found.train) / 60
    lines.append(
        f"data: {len(found.train)} to train on ({minutes:.1f} min) and {len(found.validation)} for validation, "
        f"of {found.origin}"
    )
    if {track.key for track in found.train} & {track.key for track in found.validation}:
        lines.append("warning: there is one usable file, so training and validation share it")
    lines += [f"skipped {name}: {reason}" for name, reason in found.skipped[:_MOST_SKIPPED_SHOWN]]
    if len(found.skipped) > _MOST_SKIPPED_SHOWN:
        lines.append(f"and {len(found.skipped) - _MOST_SKIPPED_SHOWN} more; all are listed in {BAD_FILES}")
    return lines
