"""Whether the latent and the discriminator are doing well: figures for the events, and warnings with a remedy.

A warning is given when its sign has been there at three looks in a row, once, and again only after three
looks without it. Signs in the latent count from the end of the KL term's warm-up on: before it, a latent may
not have found its use yet.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

LOOKS = 3  # in a row that a sign must be there, or gone
ACTIVE_VARIANCE = 0.01  # of a channel's mean over data: Burda et al., "Importance Weighted Autoencoders", 2016
_FEW_CHANNELS, _NO_INFORMATION = 0.1, 0.05  # share of all; nats per frame, of a channel that is the prior's
_IDLE_DECODER = 0.02  # of the reconstruction that depends on the latent, as a ratio of RMS
_CERTAIN, _LOSS_OF_CERTAIN = 0.99, 0.05  # accuracy and hinge loss of a discriminator that has nothing to learn
_SILENT = 1e-3  # of the gradient at the decoder's output


@dataclasses.dataclass(frozen=True)
class Figures:
    """What `diagnosis.diagnose` gives, averaged over batches, as it is understood.

    Attributes:
      kl_per_channel: nats per frame, `[latent_dim]`.
      variance_per_channel: of the posterior's mean, over crops and frames, `[latent_dim]`.
      latent_effect: RMS of what the latent changes in the reconstruction, over the reconstruction's own.
      d_loss, d_real_acc, d_fake_acc: of each sub-discriminator, `[n]`; empty without a discriminator.
      feature_matching_share: of the generator's loss; None without a discriminator, like those below.
      adversarial_gradient_ratio: norm of the adversarial loss's gradient at the decoder's output, with its
        weight, over that of the reconstruction losses'.
      feature_matching_gradient_ratio: likewise of feature matching.
      feature_matching_gradient_share: of the sum of the three norms.
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
        """The figures of several batches as one."""
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
            kl_per_channel=means["kl_per_channel"],
            variance_per_channel=np.maximum(means["mean_square"] - np.square(means["mean"]), 0),
            latent_effect=_over(float(np.sqrt(means["change_square"])), float(np.sqrt(means["square"]))),
            **part,
        )

    @property
    def active_channels(self) -> int:
        """How many latent channels' means vary with the audio (active units)."""
        return int((self.variance_per_channel > ACTIVE_VARIANCE).sum())

    @property
    def informative_channels(self) -> int:
        """How many latent channels are active, or differ from the prior: the less its weight, the freer their scale."""
        return int(((self.variance_per_channel > ACTIVE_VARIANCE) | (self.kl_per_channel > _NO_INFORMATION)).sum())

    @property
    def saturated(self) -> np.ndarray:
        """Which sub-discriminators, `[n]`, tell audio that neither network trains on with hardly a loss."""
        certain = np.minimum(self.d_real_acc, self.d_fake_acc) >= _CERTAIN
        return certain & (self.d_loss < _LOSS_OF_CERTAIN)

    def metrics(self) -> dict[str, float]:
        """By their names in the events."""
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
    """A way in which training goes wrong.

    Attributes:
      name: in the events, `health/<name>`.
      shows: whether the figures have it.
      says: what they are.
      remedy: what to try.
      of_the_latent: whether it counts only after the KL term's warm-up.
    """

    name: str
    shows: Callable[[Figures], bool]
    says: Callable[[Figures], str]
    remedy: str
    of_the_latent: bool = False


SIGNS = (
    Sign(
        "posterior_collapsed",
        lambda f: f.informative_channels < max(1, _FEW_CHANNELS * len(f.kl_per_channel)),
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
            "what they teach the generator is no longer where it could go"
        ),
        "a lower config.discriminator_optimizer.learning_rate, a larger config.discriminator_update_every, "
        "a smaller discriminator, or a higher config.adversarial.feature_matching_weight",
    ),
    Sign(
        "feature_matching_silent",
        lambda f: f.feature_matching_gradient_share is not None and f.feature_matching_gradient_share < _SILENT,
        lambda f: (
            f"feature matching is silent: {f.feature_matching_gradient_share:.2g} of the gradient at the decoder's "
            f"output, {f.feature_matching_share:.2g} of the generator's loss"
        ),
        "a higher config.adversarial.feature_matching_weight; where that is not 0, whether the discriminator's "
        "feature maps depend on the audio at all, or its learning rate has killed it",
    ),
)


class GanHealth:
    """Judges figures, look by look.

    Args:
      say: takes a warning.
      warmup_steps: of the KL term.
    """

    def __init__(self, say: Callable[[str], None], warmup_steps: int):
        self._say, self._warmup_steps = say, warmup_steps
        self._with, self._without, self._said = ({sign.name: 0 for sign in SIGNS} for _ in range(3))

    def look(self, step: int, figures: Figures) -> tuple[dict[str, float], list[str]]:
        """`(metrics, warnings)` of a look at `step`; the warnings are those that were said now."""
        metrics, warnings = figures.metrics(), []
        for sign in SIGNS:
            shows = bool(sign.shows(figures)) and not (sign.of_the_latent and step < self._warmup_steps)
            self._with[sign.name] = (self._with[sign.name] + 1) * shows
            self._without[sign.name] = (self._without[sign.name] + 1) * (not shows)
            if self._with[sign.name] >= LOOKS and not self._said[sign.name]:
                self._said[sign.name] = True
                warnings.append(f"{sign.says(figures)}; try {sign.remedy}")
                self._say(f"warning: step {step}: {warnings[-1]}")
            elif self._without[sign.name] >= LOOKS:
                self._said[sign.name] = False
            metrics[f"health/{sign.name}"] = float(self._said[sign.name])
        return metrics, warnings


def _over(a: float, b: float) -> float:
    """`a / b`; 0 over 0 is 0."""
    return a / b if b > 0 else (float("inf") if a > 0 else 0.0)
