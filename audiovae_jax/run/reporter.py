"""Reporting of a run: progress bar, metrics, samples as audio and spectrograms."""

import contextlib
import functools
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import tqdm

from audiovae_jax.errors import CheckpointError
from audiovae_jax.html import picture
from audiovae_jax.run.samples import Sample
from audiovae_jax.run.tracking.events import Events
from audiovae_jax.run.tracking.writer import Writer
from audiovae_jax.storage.bucket_path import BucketPath

# Steps between records of training scalars. Recording every step of a long run would fill a disk.
_SCALARS_EVERY = 10
_FLUSH_EVERY = 60  # seconds between updates that TensorBoard can read
_BAR_METRICS = {
    "train/total_g_loss": "G",
    "train/d_loss": "D",
    "train/reconstruction_loss": "rec",
    "train/feature_matching_loss": "fm",
    "val/total_loss": "val",
    "train/learning_rate": "lr",
}
_LEARNING_RATES = ("train/learning_rate", "train/discriminator_learning_rate")


class Reporter:
    """Shows and records a run; does nothing unless `enabled`.

    Args:
      workdir: folder, or path in a bucket, for events and samples.
      start_step, num_steps: first and last step of this session.
      first_step: first step with events of this session. Events of a killed session from this step on are hidden.
      sample_rate: sample rate of the samples, in Hz.
      enabled: whether this is the first process.
      writers: creates the writer that records the run. Its argument is called with each warning. The default writes
        TensorBoard events.
    """

    def __init__(
        self,
        workdir: Path | BucketPath,
        *,
        start_step: int,
        first_step: int,
        num_steps: int,
        sample_rate: int,
        enabled: bool = True,
        writers: Callable[[Callable[[str], None]], Writer] | None = None,
    ):
        self._enabled = enabled
        self._workdir, self._sample_rate = workdir, sample_rate
        self._shown: dict[str, float] = {}
        self._flushed = -math.inf
        self._at, self._finished = start_step, False
        self._timed_from, self._steps_per_second = None, None
        self._learning_rates: list[float] = []
        self._rates: dict[str, float] = {}
        self._events: Writer = Writer()  # records nothing
        self._model_folder: tempfile.TemporaryDirectory | None = None
        if enabled:
            self._bar = tqdm.tqdm(
                initial=start_step,
                total=num_steps,
                unit="step",
                smoothing=0.05,
                dynamic_ncols=True,
                # A terminal shows a moving bar. A log file gets a line every ten seconds at most.
                mininterval=0.1 if sys.stderr.isatty() else 10,
            )
            self._events = (writers or functools.partial(Events, workdir, first_step))(self.say)

    def say(self, text: str):
        """Print a line above the bar, and record it if it is a warning."""
        if self._enabled:
            self._bar.write(text)
            if text.startswith("warning: "):
                self._events.text("warning", text.removeprefix("warning: "), self._at)

    @contextlib.contextmanager
    def timed(self, what: str):
        """Time a block as the function `timed` does, and stop the bar's clock.

        The block does not count towards the speed.
        """
        start = time.monotonic()
        try:
            with timed(what, self.say):
                yield
        finally:
            self._skip_time(time.monotonic() - start)

    def step(self, step: int, metrics: dict[str, float]):
        """Advance the bar to `step`, and show and record its metrics (`train/...`)."""
        if not self._enabled:
            return
        self._at = step
        self._learning_rates = [metrics[name] for name in _LEARNING_RATES if name in metrics]
        if is_recorded(step):
            metrics = metrics | self._speed(step)
        self._show(metrics)
        self._bar.update(step - self._bar.n)
        if is_recorded(step):
            self.scalars(step, metrics)

    def rewind(self, step: int, first_step: int):
        """Return to an earlier step, and hide the records from `first_step` on."""
        if self._enabled:
            self._events.restart(first_step)
            self._bar.n = self._at = step
            self._timed_from = None

    def scalars(self, step: int, metrics: dict[str, float]):
        """Record metrics."""
        if self._enabled:
            self._at = max(self._at, step)
            self._events.scalars(metrics, step)
            if time.monotonic() - self._flushed > _FLUSH_EVERY:
                self.flush()
            self._show(metrics)

    @property
    def pace(self) -> str:
        """The last step's learning rates and the recent speed, as the end of a line; empty until the speed is known."""
        if self._steps_per_second is None:
            return ""
        rates = ", ".join(f"{rate:.3g}" for rate in self._learning_rates)
        return f"; learning rates {rates}; {self._steps_per_second:.3g} steps/s"

    def rate(self, name: str, per_step: float):
        """Record an amount per second with the speed, given the amount per step."""
        self._rates[name] = per_step

    def text(self, step: int, name: str, text: str):
        """Record a line of text."""
        if self._enabled:
            self._events.text(name, text, step)

    def flush(self):
        """Flush the events."""
        if self._enabled:
            self._flushed = time.monotonic()
            self._events.flush()

    def samples(self, step: int, samples: list[Sample]):
        """Record samples as events, and as wav and png files under `samples/`."""
        if not self._enabled:
            return
        try:
            self._write_samples(step, samples)
        except (OSError, soundfile.LibsndfileError, AssertionError) as error:  # the last is a full disk in soundfile
            self.say(f"warning: the samples of step {step} were not written: {error or 'the disk is full'}")

    def _write_samples(self, step, samples):
        place = self._workdir / "samples" / f"step_{step:08d}"
        if not isinstance(place, BucketPath):
            place.mkdir(parents=True, exist_ok=True)
            self._write_samples_to(place, step, samples)
            return
        with tempfile.TemporaryDirectory(prefix="audiovae_jax_samples_") as folder:
            self._write_samples_to(Path(folder), step, samples)
            place.upload(Path(folder))

    def _write_samples_to(self, folder, step, samples):
        for i, sample in enumerate(samples):
            both = (sample.original, sample.reconstruction)
            for name, audio in zip(("original", "reconstruction"), both, strict=True):
                audio = np.clip(audio, -1, 1)
                soundfile.write(folder / f"{i}_{name}.wav", audio, self._sample_rate, subtype="PCM_16")
                self._events.audio(f"sample_{i}/{name}", audio, step, self._sample_rate)
            png = picture.png(*both, self._sample_rate, title=sample.title(step))
            (folder / f"{i}.png").write_bytes(png)
            self._events.image(f"sample_{i}/spectrograms", png, step)
        self._events.flush()

    def finish(self, save_best: Callable[[Path], None]):
        """Record the end of the run, and its best model if the writer accepts models.

        Args:
          save_best: writes the best model as a saved model to the given path.
        """
        self._finished = True
        if self._enabled and self._events.takes_models:
            self._model_folder = tempfile.TemporaryDirectory(prefix="audiovae_jax_best_model_")
            try:
                save_best(Path(self._model_folder.name) / "model")
            except (OSError, CheckpointError) as error:
                self.say(f"warning: the best model is not recorded: {error}")
            else:
                self._events.model(Path(self._model_folder.name) / "model")

    def close(self):
        """Close the writer and the bar."""
        if self._enabled:
            self._events.close(self._finished)
            self._bar.close()
        if self._model_folder is not None:
            self._model_folder.cleanup()

    def _speed(self, step):
        """Return the steps per second since the last record, and the `rate` amounts.

        Validation, samples and saves count. Blocks under `timed`, such as compilation, do not.
        """
        now, since = time.monotonic(), self._timed_from
        self._timed_from = (step, now)
        if since is None or step <= since[0]:
            return {}
        self._steps_per_second = (step - since[0]) / max(now - since[1], 1e-9)
        rates = {name: amount * self._steps_per_second for name, amount in self._rates.items()}
        return {"perf/steps_per_second": self._steps_per_second, **rates}

    def _show(self, metrics):
        self._shown |= {short: metrics[name] for name, short in _BAR_METRICS.items() if name in metrics}
        self._bar.set_postfix_str(" ".join(f"{k} {v:.3g}" for k, v in self._shown.items()), refresh=False)

    def _skip_time(self, seconds):
        if self._timed_from is not None:
            self._timed_from = (self._timed_from[0], self._timed_from[1] + seconds)
        if self._enabled and not self._bar.disable:
            self._bar.start_t += seconds
            self._bar.last_print_t += seconds


def is_recorded(step: int) -> bool:
    """Whether the training metrics of `step` are recorded."""
    return step == 1 or step % _SCALARS_EVERY == 0


def peak_memory(devices: list) -> dict[str, float]:
    """Return the peak memory of the fullest device by event name.

    The result is empty if the devices do not report it.
    """
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
    return {} if None in peaks else {"perf/peak_memory_gigabytes": max(peaks) / 1e9}


@contextlib.contextmanager
def timed(what: str, say: Callable[[str], None]):
    """Report the start of a block, and its duration if it succeeds."""
    say(f"{what} ...")
    start = time.monotonic()
    yield
    say(f"{what}: {time.monotonic() - start:.1f} s")
