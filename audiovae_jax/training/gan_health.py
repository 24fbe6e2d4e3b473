"""Health checks of the latent and the discriminator: metrics and warnings.

A warning is given once its sign was present at three checks in a row. It is repeated only after three checks without
the sign. Signs of the latent are ignored during the KL term's warm-up, when the latent may not be used yet.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

CONSECUTIVE_CHECKS = 3  # consecutive checks with or without a sign that switch its warning
ACTIVE_VARIANCE = 0.01  # minimum variance of an active channel's mean (Burda et al., 2016)
_FEW_CHANNELS, _NO_INFORMATION = 0.1, 0.05  # fraction of channels; nats per frame of a channel that equals the prior
_IDLE_DECODER = 0.02  # RMS of the latent's effect on the reconstruction, relative to the reconstruction
_CERTAIN, _LOSS_OF_CERTAIN = 0.99, 0.05  # accuracy and loss of a discriminator that has nothing to learn
_SILENT = 1e-3  # fraction of the gradient at the decoder's output


@dataclasses.dataclass(frozen=True)
class Figures:
    """Statistics derived from `diagnosis.diagnose`, averaged over batches.

    All gradients are of weighted losses, at the decoder's output. Without a discriminator, arrays that concern it are
    empty and numbers are None.

    Attributes:
      kl_per_channel: in nats per frame, `[latent_dim]`; empty without a posterior.
      variance_per_channel: of the posterior's mean, over crops and frames, `[latent_dim]`.
      latent_effect: RMS of the latent's effect on the reconstruction, divided by the RMS of the reconstruction.
      d_loss, d_real_acc, d_fake_acc: of each sub-discriminator, `[n]`.
      feature_matching_share: fraction of the generator's loss.
      adversarial_gradient_ratio: gradient norm of the adversarial loss, divided by that of the reconstruction losses.
      feature_matching_gradient_ratio: the same for the feature matching loss.
      feature_matching_gradient_share: gradient norm of feature matching, divided by the sum of all three norms.
    """

    kl_per_channel: np.ndarray
    variance_per_channel: np.ndarray
    latent_effect: float
    d_loss: np.ndarray
    d_real_acc: np.ndarray
    d_fake_acc: np.ndarray
    feature_matching_share: float | None = None
    adversarial_gradient_ratio: float | None = None
    feature_matching_gradient_ratio: float | None = None
    feature_matching_gradient_share: float | None = None

    @classmethod
    def of(cls, batches: list[dict[str, np.ndarray]]) -> "Figures":
        """Compute the statistics from the results of several batches."""
        means = {name: np.mean([batch[name] for batch in batches], axis=0, dtype=np.float64) for name in batches[0]}
        part = {name: means.get(name, np.zeros(0)) for name in ("d_loss", "d_real_acc", "d_fake_acc")}
        if "d_loss" in means:
            norms = {name: float(np.sqrt(means[f"{name}_gradient"])) for name in
                     ("reconstruction", "adversarial", "feature_matching")}  # fmt: skip
            part |= {
                "feature_matching_share": float(means["feature_matching_share"]),
                "adversarial_gradient_ratio": _over(norms["adversarial"], norms["reconstruction"]),
                "feature_matching_gradient_ratio": _over(norms["feature_matching"], norms["reconstruction"]),
                "feature_matching_gradient_share": _over(norms["feature_matching"], sum(norms.values())),
            }
        return cls(
            kl_per_channel=means.get("kl_per_channel", np.zeros(0)),
            variance_per_channel=np.maximum(means["mean_square"] - np.square(means["mean"]), 0),
            latent_effect=_over(float(np.sqrt(means["change_square"])), float(np.sqrt(means["square"]))),
            **part,
        )

    @property
    def active_channels(self) -> int:
        """Number of latent channels whose means vary with the audio (active units)."""
        return int((self.variance_per_channel > ACTIVE_VARIANCE).sum())

    @property
    def informative_channels(self) -> int:
        """Number of latent channels that are active or differ from the prior.

        The model must have a posterior. A small KL weight leaves the scale of the means free, so a small variance alone
        does not mean an unused channel.
        """
        return int(((self.variance_per_channel > ACTIVE_VARIANCE) | (self.kl_per_channel > _NO_INFORMATION)).sum())

    @property
    def saturated(self) -> np.ndarray:
        """Whether each sub-discriminator, `[n]`, is nearly perfect on validation audio."""
        certain = np.minimum(self.d_real_acc, self.d_fake_acc) >= _CERTAIN
        return certain & (self.d_loss < _LOSS_OF_CERTAIN)

    def metrics(self) -> dict[str, float]:
        """Return the statistics by their metric names."""
        named = {
            "health/active_channels": float(self.active_channels),
            "health/latent_effect": self.latent_effect,
            **{f"health_kl/channel_{i:02d}": float(value) for i, value in enumerate(self.kl_per_channel)},
        }
        for name in ("d_loss", "d_real_acc", "d_fake_acc"):
            named |= {f"health_{name}/{i:02d}": float(value) for i, value in enumerate(getattr(self, name))}
        for name in ("feature_matching_share", "adversarial_gradient_ratio", "feature_matching_gradient_ratio"):
            if getattr(self, name) is not None:
                named[f"health/{name}"] = getattr(self, name)
        return named


@dataclasses.dataclass(frozen=True)
class Sign:
    """A sign of a training failure.

    Attributes:
      name: its metric is `health/<name>`.
      shows: returns whether the statistics have the sign.
      says: describes the statistics.
      remedy: suggestions for the user.
      of_the_latent: whether it is ignored during the KL term's warm-up.
    """

    name: str
    shows: Callable[[Figures], bool]
    says: Callable[[Figures], str]
    remedy: str
    of_the_latent: bool = False


SIGNS = (
    Sign(
        "posterior_collapsed",
        lambda f: len(f.kl_per_channel) > 0 and f.informative_channels < max(1, _FEW_CHANNELS * len(f.kl_per_channel)),
        lambda f: (
            f"the posterior has collapsed: {f.informative_channels} of {len(f.kl_per_channel)} latent channels differ "
            f"from the prior, KL {f.kl_per_channel.sum():.3g} nats a frame"
        ),
        "a lower config.kl.weight, a longer config.kl.warmup_steps, or config.kl.free_bits above 0",
        of_the_latent=True,
    ),
    Sign(
        "latent_ignored",
        lambda f: f.latent_effect < _IDLE_DECODER,
        lambda f: f"the decoder ignores the latent: with z = 0 its output changes by {f.latent_effect:.2%} of itself",
        "a lower config.kl.weight, a lower config.optimizer.learning_rate, or more weight on reconstruction losses",
        of_the_latent=True,
    ),
    Sign(
        "discriminator_saturated",
        lambda f: len(f.d_loss) > 0 and f.saturated.mean() > 0.5,
        lambda f: (
            f"the discriminator is saturated: {f.saturated.sum()} of its {len(f.d_loss)} parts tell real from "
            f"generated audio at least {_CERTAIN:.0%} of the time, with a loss of {f.d_loss.mean():.3g}; "
            "their gradient no longer shows the generator how to improve"
        ),
        "a lower config.discriminator_optimizer.learning_rate, a larger config.discriminator_update_every, "
        "a smaller discriminator, or a higher config.adversarial.feature_matching_weight",
    ),
    Sign(
        "feature_matching_silent",
        lambda f: f.feature_matching_gradient_share is not None and f.feature_matching_gradient_share < _SILENT,
        lambda f: (
            f"feature matching has no effect: {f.feature_matching_gradient_share:.2g} of the gradient at the "
            f"decoder's output, {f.feature_matching_share:.2g} of the generator's loss"
        ),
        "a higher config.adversarial.feature_matching_weight; if it is above 0 already, check that the "
        "discriminator's feature maps depend on the audio, and that its learning rate is not too high",
    ),
)


class GanHealth:
    """Checks statistics for signs of failure, and warns.

    Args:
      say: called with a warning.
      warmup_steps: of the KL term.
    """

    def __init__(self, say: Callable[[str], None], warmup_steps: int):
        self._say, self._warmup_steps = say, warmup_steps
        self._with, self._without, self._said = ({sign.name: 0 for sign in SIGNS} for _ in range(3))

    def check(self, step: int, figures: Figures) -> tuple[dict[str, float], list[str]]:
        """Check the statistics of `step`; return `(metrics, new warnings)`."""
        metrics, warnings = figures.metrics(), []
        for sign in SIGNS:
            shows = bool(sign.shows(figures)) and not (sign.of_the_latent and step < self._warmup_steps)
            self._with[sign.name] = (self._with[sign.name] + 1) * shows
            self._without[sign.name] = (self._without[sign.name] + 1) * (not shows)
            if self._with[sign.name] >= CONSECUTIVE_CHECKS and not self._said[sign.name]:
                self._said[sign.name] = True
                warnings.append(f"{sign.says(figures)}; try {sign.remedy}")
                self._say(f"warning: step {step}: {warnings[-1]}")
            elif self._without[sign.name] >= CONSECUTIVE_CHECKS:
                self._said[sign.name] = False
            metrics[f"health/{sign.name}"] = float(self._said[sign.name])
        return metrics, warnings


def _over(a: float, b: float) -> float:
    """Return `a / b`, or 0 for 0 / 0."""
    return a / b if b > 0 else (float("inf") if a > 0 else 0.0)
