"""Numeric safety: counting skipped updates, rolling back, and finally failing.

The training step skips an update if a loss or gradient is not finite. Decisions here depend only on metrics that are
the same on every host, so all hosts decide the same.
"""

import collections
import math
from collections.abc import Callable

import jax
import numpy as np

from audiovae_jax.errors import TrainingError
from audiovae_jax.run.bad_batches import BadBatches
from audiovae_jax.training.step import Recipe

NETWORKS = {"g": "generator", "d": "discriminator"}
_MAX_REPORTED_IN_A_ROW = 3  # skipped updates in a row that are reported; the metrics count all
_MAIN_METRICS = (
    "train/total_g_loss",
    "train/reconstruction_loss",
    "train/d_loss",
    "train/g_grad_norm",
    "train/d_grad_norm",
)


class RollBack(Exception):
    """The run must resume from its last checkpoint, in another order of the data."""


class Safety:
    """Tracks skipped updates of a run, and decides on rollbacks and checkpoints.

    Args:
      config: the section `safety`.
      recipe: of the run.
      batches: stores batches whose updates were skipped.
      say: called with messages.
      position: the result of `position` in the checkpoint that the run resumes from; empty for a new run.

    Attributes:
      order: number of rollbacks so far, which selects the order of training records.
    """

    def __init__(self, config, recipe: Recipe, batches: BadBatches, say: Callable[[str], None], position: dict):
        self._config, self._recipe, self._batches, self._say = config, recipe, batches, say
        self.order: int = position.get("order", 0)
        self._skipped = {name: 0 for name in NETWORKS} | position.get("skipped", {})
        self._in_a_row = {name: 0 for name in NETWORKS} | position.get("skipped_in_a_row", {})
        self._has_updated = self._holds_checkpoint = False
        self._last_whole: tuple[int, dict[str, float]] | None = None
        self._last_skipped: tuple[int, dict[str, float]] | None = None
        self._files: collections.Counter[str] = collections.Counter()
        self._bad_audio = 0

    def position(self) -> dict:
        """Return the state to save in a checkpoint."""
        return {"order": self.order, "skipped": dict(self._skipped), "skipped_in_a_row": dict(self._in_a_row)}

    @property
    def is_whole(self) -> bool:
        """Whether the last update of every network was applied, not skipped."""
        return not any(self._in_a_row.values())

    def may_save(self, due: bool) -> bool:
        """Return whether to save a checkpoint now, given whether one is due.

        Never save while updates are being skipped. Their cause may be in the state, and a rollback must not return to
        it. A checkpoint that is due is saved after the next applied updates.
        """
        due = due or self._holds_checkpoint
        self._holds_checkpoint = due and not self.is_whole
        return due and self.is_whole

    def see(
        self, step: int, metrics: dict[str, float], local_rows: Callable[[], np.ndarray], first: int, records
    ) -> dict[str, float]:
        """Process the metrics of a step.

        Args:
          step: counted from 1.
          metrics: of the step (`train/...`).
          local_rows: returns this host's rows of the batch. It is called only if an update was skipped.
          first, records: see `BadBatches.keep`.

        Returns:
          Metrics with the number of skipped updates of the run.
        """
        skipped = [name for name in NETWORKS if metrics.get(f"train/{name}_skipped")]
        for name in NETWORKS:
            if name in skipped:
                self._skipped[name] += 1
                self._in_a_row[name] += 1
            elif self._is_due(name, step, metrics):
                self._in_a_row[name] = 0
        if skipped:
            self._last_skipped = (step, metrics)
            batch = self._batches.keep(step, self.order, metrics, local_rows(), first, records)
            self._tell(step, skipped, metrics, batch)
        elif self.is_whole:
            self._has_updated = True
            self._last_whole = (step, metrics)
            self._files.clear()
            self._bad_audio = 0
        networks = [name for name in NETWORKS if f"train/{name}_skipped" in metrics]
        return {f"train/skipped_{name}_updates": float(self._skipped[name]) for name in networks}

    def require_progress(self):
        """Raise RollBack if too many updates of a network in a row were skipped."""
        for name, count in self._in_a_row.items():
            if count >= self._config.max_skipped:
                raise RollBack(f"{count} updates of the {NETWORKS[name]} in a row were skipped")

    def require_finite_validation(self, step: int, total_loss: float):
        """Check that a validation loss is finite.

        Raises:
          RollBack: the loss is not finite.
          TrainingError: the loss is not finite, and there was no update since the start or the last rollback.
        """
        if math.isfinite(total_loss):
            return
        what = f"val/total_loss became {total_loss} at step {step}"
        if self._has_updated:
            raise RollBack(what)
        raise TrainingError(
            f"{what}, before the first update: {self._batches.folder.parent} cannot start. Check that every loss of "
            "config.losses is finite on the validation crops, which may contain silence, or try dtype float32"
        )

    def roll_back(self, reason: RollBack, newest_checkpoint: int | None) -> str:
        """Select the next order of records for a rollback.

        Returns:
          A warning, to be reported once the records after the checkpoint are hidden.

        Raises:
          TrainingError: the limit of rollbacks is reached. The message is a report.
        """
        if self.order >= self._config.max_rollbacks:
            raise TrainingError(self._report(reason, newest_checkpoint))
        self.order += 1
        back_to = "the beginning" if newest_checkpoint is None else f"checkpoint {newest_checkpoint}"
        self._in_a_row = {name: 0 for name in NETWORKS}
        self._has_updated = self._holds_checkpoint = False
        return (
            f"warning: {reason}: rolling back to {back_to}, with the data in a different order "
            f"(rollback {self.order} of at most {self._config.max_rollbacks})"
        )

    def summary(self) -> str | None:
        """Summarise all skipped updates of the run in a line; None if there are none."""
        if not any(self._skipped.values()):
            return None
        counts = " and ".join(f"{count} of the {NETWORKS[name]}" for name, count in self._skipped.items() if count)
        back = f", and the run was rolled back {_times(self.order)}" if self.order else ""
        return f"warning: skipped updates: {counts}{back}; their batches are in {self._batches.folder}"

    def _is_due(self, name, step, metrics):
        if "train/d_skipped" not in metrics:  # the discriminator is not trained yet, or never
            return name == "g"
        every = {"g": self._recipe.generator_update_every, "d": self._recipe.discriminator_update_every}
        return (step - 1) % every[name] == 0

    def _tell(self, step, skipped, metrics, batch):
        self._files.update(origin.file for origin in batch.origins if origin is not None)
        self._bad_audio += len(batch.not_finite)
        if max(self._in_a_row.values()) > _MAX_REPORTED_IN_A_ROW:
            return
        of = " and of the ".join(NETWORKS[name] for name in skipped)
        crops = [str(origin) for origin in batch.origins if origin is not None]
        lines = [
            f"warning: step {step}: the update of the {of} was skipped; {_not_finite(metrics)}",
            f"  its crops, saved in {self._batches.folder}: {_few(crops)}" if crops else "",
            f"  {len(batch.not_finite)} of them contain NaN or infinite samples" if batch.not_finite else "",
            "  these are the first host's; the others' are in host_<number>/ there" if jax.process_count() > 1 else "",
        ]
        self._say("\n".join(filter(None, lines)))

    def _report(self, reason, newest_checkpoint):
        lines = [f"training cannot continue: {reason}, and the run was rolled back {_times(self.order)} already"]
        if self._last_skipped is not None:
            step, metrics = self._last_skipped
            lines.append(f"  at step {step}: {_not_finite(metrics)}")
        if self._last_whole is not None:
            step, metrics = self._last_whole
            lines.append(f"  last update: step {step}, {_figures(metrics, _MAIN_METRICS)}")
        if self._files:
            often = [f"{file} ({count} crops)" for file, count in self._files.most_common(5)]
            lines.append(f"  crops since then: {', '.join(often)}; all are in {self._batches.folder}")
        saved = "none" if newest_checkpoint is None else f"{newest_checkpoint}, with finite values only"
        lines += [f"  checkpoint: {saved}", *(f"try: {remedy}" for remedy in self._remedies())]
        return "\n".join(lines)

    def _remedies(self):
        if self._bad_audio:
            yield "to fix the audio: those crops contain NaN or infinite samples, from their files or from processing"
            return
        metrics = self._last_skipped[1] if self._last_skipped else {}
        terms = [name for name, _, _ in self._recipe.losses.terms]
        wrong = [name for name in terms if not math.isfinite(metrics.get(f"train/{name}", 0.0))]
        if wrong and len(wrong) < len(terms):
            yield f"another config.losses.{wrong[0]}; not finite, unlike other losses: {', '.join(wrong)}"
        elif not wrong and not math.isfinite(metrics.get("train/g_grad_norm", 0.0)):
            yield "to find the finite loss without a finite gradient: a root or a logarithm at 0 needs a floor"
        networks = {"model": self._recipe.model, "discriminator": self._recipe.discriminator}
        half = [name for name, network in networks.items() if str(getattr(network, "dtype", "")) == "bfloat16"]
        if half:
            yield " and ".join(f"config.{name}.dtype=float32" for name in half)
        of = "discriminator_optimizer" if self._in_a_row["d"] > self._in_a_row["g"] else "optimizer"
        yield f"a lower config.{of}.learning_rate, or a smaller clip_norm"
        yield "these in a new --workdir with --config.init_from of this one, since the config of a workdir is fixed"


def _times(count):
    return "once" if count == 1 else f"{count} times"


def _not_finite(metrics):
    names = sorted((name for name, value in metrics.items() if not math.isfinite(value)), key=_place)
    return f"not finite: {_few([_figures(metrics, [name]) for name in names])}" if names else "its audio is not finite"


def _place(name):
    """Return a sort key that puts totals before their terms."""
    return (_MAIN_METRICS.index(name) if name in _MAIN_METRICS else len(_MAIN_METRICS), name)


def _figures(metrics, names):
    return ", ".join(f"{name} {metrics[name]:.4g}" for name in names if name in metrics)


def _few(items, most=5):
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
