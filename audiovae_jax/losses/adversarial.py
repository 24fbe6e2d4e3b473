"""GAN losses with feature matching, and the calculator that weights them.

The hinge loss is from Lim and Ye, "Geometric GAN", 2017. The least-squares loss is from Mao et al., 2017. The
relativistic pairing loss is from Jolicoeur-Martineau, 2018, in the softplus form of R3GAN (Huang et al., 2024).
Feature matching is from Salimans et al., 2016, in the L1 form of MelGAN (Kumar et al., 2019). A discriminator returns
`(logits, feature_maps)`: a list of arrays and a list of lists of arrays. Any of these arrays may be `Interleaved`.
"""

import dataclasses
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from audiovae_jax.errors import require_range
from audiovae_jax.losses.weighted import is_off, weighted_sum
from audiovae_jax.ops.interleaved import is_interleaved


def discriminator_hinge(real_logits, fake_logits):
    """Average `mean relu(1 - real) + mean relu(1 + fake)` over sub-discriminators."""
    return _mean_over(
        lambda real, fake: jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake)), real_logits, fake_logits
    )


def generator_hinge(fake_logits):
    """Average `mean -fake` over sub-discriminators."""
    return _mean_over(lambda fake: jnp.mean(-fake), fake_logits)


def discriminator_least_squares(real_logits, fake_logits):
    """Average `mean (real - 1)^2 + mean fake^2` over sub-discriminators.

    It is twice the loss of the paper, as in HiFi-GAN and DAC.
    """
    return _mean_over(
        lambda real, fake: jnp.mean(jnp.square(real - 1)) + jnp.mean(jnp.square(fake)), real_logits, fake_logits
    )


def generator_least_squares(fake_logits):
    """Average `mean (fake - 1)^2` over sub-discriminators."""
    return _mean_over(lambda fake: jnp.mean(jnp.square(fake - 1)), fake_logits)


def discriminator_relativistic(real_logits, fake_logits):
    """Average `mean softplus(fake - real)` over sub-discriminators.

    A pair is the logit of a recording and the logit of its reconstruction at the same place. A bias of the last layer
    has no effect.
    """
    return _mean_over(lambda real, fake: jnp.mean(jax.nn.softplus(fake - real)), real_logits, fake_logits)


def generator_relativistic(real_logits, fake_logits):
    """Average `mean softplus(real - fake)` over sub-discriminators.

    The real logits receive no gradient.
    """
    return _mean_over(
        lambda real, fake: jnp.mean(jax.nn.softplus(jax.lax.stop_gradient(real) - fake)), real_logits, fake_logits
    )


class _Loss(NamedTuple):
    discriminator: Callable  # (real logits, fake logits) -> scalar
    generator: Callable  # (real logits, fake logits) -> scalar
    boundary: float | None  # between logits of real and of generated audio; None if only differences count


LOSSES = {
    "hinge": _Loss(discriminator_hinge, lambda real, fake: generator_hinge(fake), 0.0),
    "least_squares": _Loss(discriminator_least_squares, lambda real, fake: generator_least_squares(fake), 0.5),
    "relativistic": _Loss(discriminator_relativistic, generator_relativistic, None),
}


def feature_matching(real_maps, fake_maps):
    """Average `mean |fake - real|` over all feature maps.

    The real maps are targets and receive no gradient.
    """
    real_maps, fake_maps = (jax.tree.leaves(maps, is_leaf=is_interleaved) for maps in (real_maps, fake_maps))
    return _mean_over(lambda real, fake: jnp.mean(jnp.abs(fake - jax.lax.stop_gradient(real))), real_maps, fake_maps)


def gradient_penalty(discriminator, audio):
    """Return the mean squared norm of the discriminator's gradient at the audio.

    It is `mean_b |d D(audio_b) / d audio_b|^2`, where `D` is the average logit of an item (Mescheder et al., 2018). The
    penalty is called R1 for real audio, and R2 for generated audio.

    Args:
      discriminator: callable `audio [B, T, C] -> (logits, feature_maps)`, twice differentiable.
      audio: `[B, T, C]`.

    Returns:
      A float32 scalar.
    """

    def score(audio):
        return audio.shape[0] * _mean_over(jnp.mean, discriminator(audio)[0])

    return jnp.sum(jnp.square(jax.grad(score)(audio).astype(jnp.float32))) / audio.shape[0]


def accuracies(real_logits, fake_logits, loss="hinge"):
    """Return the fractions of real and of fake logits classified correctly.

    A logit counts as real above 0 for "hinge", and above 0.5 for "least_squares". For "relativistic" both fractions
    are the share of pairs with real > fake. Each fraction is averaged over sub-discriminators.
    """
    boundary = LOSSES[loss].boundary
    if boundary is None:
        pairs = _mean_over(lambda real, fake: jnp.mean((real > fake).astype(jnp.float32)), real_logits, fake_logits)
        return pairs, pairs
    real = _mean_over(lambda x: jnp.mean((x > boundary).astype(jnp.float32)), real_logits)
    fake = _mean_over(lambda x: jnp.mean((x < boundary).astype(jnp.float32)), fake_logits)
    return real, fake


def by_discriminator(real_logits, fake_logits, loss="hinge"):
    """Return the loss and the accuracies of each sub-discriminator.

    Args:
      real_logits, fake_logits: lists of `n` arrays.
      loss: a key of `LOSSES`.

    Returns:
      A dict of `[n]` arrays in the order of the logits: `d_loss`, `d_real_acc`, `d_fake_acc`.
    """
    parts = [((real,), (fake,)) for real, fake in zip(real_logits, fake_logits, strict=True)]
    accurate = [accuracies(real, fake, loss) for real, fake in parts]
    return {
        "d_loss": jnp.stack([LOSSES[loss].discriminator(real, fake) for real, fake in parts]),
        "d_real_acc": jnp.stack([real for real, _ in accurate]),
        "d_fake_acc": jnp.stack([fake for _, fake in accurate]),
    }


def _mean_over(fn, *lists):
    """Average `fn` over the arrays of the lists.

    `fn` averages within an array. An `Interleaved` array is weighted by its number of parts.
    """
    total = count = 0
    for items in zip(*lists, strict=True):
        parts = items[0].parts if is_interleaved(items[0]) else 1
        arrays = [(x.array if is_interleaved(x) else x).astype(jnp.float32) for x in items]
        total, count = total + parts * fn(*arrays), count + parts
    return total / count


@dataclasses.dataclass(frozen=True)
class AdversarialLossCalculator:
    """Weighted adversarial losses that start after a warm-up.

    It can be used on its own: `discriminator` is any callable `audio [B, T, C] -> (logits, feature_maps)`.

    Attributes:
      adversarial_weight: weight of the generator's adversarial loss.
      feature_matching_weight: weight of the feature-matching loss.
      warmup_steps: number of steps before the discriminator is used.
      loss: "hinge", "least_squares" or "relativistic", see `LOSSES`.
      ramp_steps: number of steps after the warm-up over which both weights rise linearly from 0, see `at`.
      r1_weight, r2_weight: weights of half the `gradient_penalty` of real and of generated audio, in the
        discriminator's loss.
    """

    adversarial_weight: float = 1.0
    feature_matching_weight: float = 10.0
    warmup_steps: int = 0
    loss: str = "hinge"
    ramp_steps: int = 0
    r1_weight: float = 0.0
    r2_weight: float = 0.0

    def __post_init__(self):
        counts = ("warmup_steps", "ramp_steps")
        for name in ("adversarial_weight", "feature_matching_weight", "r1_weight", "r2_weight", *counts):
            require_range(name, getattr(self, name))
        if self.loss not in LOSSES:
            raise ValueError(f"loss={self.loss!r} is unknown; use one of {', '.join(LOSSES)}")

    def at(self, step):
        """Return the calculator with the weights of `step` (int or traced scalar).

        Both weights are 0 at `warmup_steps` and complete `ramp_steps` later. Without a ramp this is `self`.
        """
        if self.ramp_steps == 0:
            return self
        share = jnp.clip((step - self.warmup_steps) / self.ramp_steps, 0.0, 1.0)
        weights = {name: getattr(self, name) for name in ("adversarial_weight", "feature_matching_weight")}
        weights = {name: weight if is_off(weight) else weight * share for name, weight in weights.items()}
        return dataclasses.replace(self, **weights, ramp_steps=0)

    def is_active(self, global_step):
        """Return whether the losses are active at `global_step` (int or traced scalar)."""
        return global_step >= self.warmup_steps

    def compute_generator_loss(self, discriminator, real_audio, fake_audio, global_step):
        """Return the generator's losses at `global_step`.

        Args:
          discriminator: callable `audio -> (logits, feature_maps)`.
          real_audio, fake_audio: `[B, T, C]`; the gradient reaches `fake_audio`.
          global_step: an int, or a traced scalar.

        Returns:
          A dict of scalars: `g_adv_loss` and `fm_loss` (both unweighted), `total_adv_loss` (weighted) and
          `is_active`. During warm-up the losses are 0. If `global_step` is an int, the discriminator is not called
          during warm-up.
        """
        active = self.is_active(global_step)
        try:
            known = operator.index(active)
        except (TypeError, jax.errors.JAXTypeError):
            known = None
        if known == 0:
            zero = jnp.zeros((), jnp.float32)
            return {"g_adv_loss": zero, "fm_loss": zero, "total_adv_loss": zero, "is_active": active}
        losses = self.at(global_step).generator_losses(discriminator(real_audio), discriminator(fake_audio))
        if known is None:
            losses = {name: jnp.where(active, value, 0.0) for name, value in losses.items()}
        return {**losses, "is_active": active}

    def compute_discriminator_loss(self, discriminator, real_audio, fake_audio):
        """Return the discriminator's loss. No gradient reaches `fake_audio`.

        Returns:
          A dict of scalars: `d_loss`, the fractions of correct logits `d_real_acc` and `d_fake_acc`, see `accuracies`,
          and, where it is in use, the `gradient_penalty` that `d_loss` includes.
        """
        fake_audio = jax.lax.stop_gradient(fake_audio)
        losses = self.discriminator_losses(discriminator(real_audio), discriminator(fake_audio))
        if not self.is_penalized:
            return losses
        penalty = self.penalty(discriminator, real_audio, fake_audio)
        return {**losses, "d_loss": losses["d_loss"] + penalty, "gradient_penalty": penalty}

    @property
    def is_penalized(self) -> bool:
        """Whether a gradient penalty is in use."""
        return not (is_off(self.r1_weight) and is_off(self.r2_weight))

    def penalty(self, discriminator, real_audio, fake_audio):
        """Return the weighted gradient penalties of `[B, T, C]` audio."""
        terms = [(self.r1_weight, real_audio), (self.r2_weight, fake_audio)]
        return weighted_sum(
            (weight / 2, gradient_penalty(discriminator, audio)) for weight, audio in terms if not is_off(weight)
        )

    def generator_losses(self, real_output, fake_output):
        """Return the generator's losses from two outputs, without warm-up or ramp."""
        g_adv_loss = LOSSES[self.loss].generator(real_output[0], fake_output[0])
        fm_loss = feature_matching(real_output[1], fake_output[1])
        total = weighted_sum([(self.adversarial_weight, g_adv_loss), (self.feature_matching_weight, fm_loss)])
        return {"g_adv_loss": g_adv_loss, "fm_loss": fm_loss, "total_adv_loss": total}

    def discriminator_losses(self, real_output, fake_output):
        """Return the discriminator's losses from its two outputs."""
        d_real_acc, d_fake_acc = accuracies(real_output[0], fake_output[0], self.loss)
        d_loss = LOSSES[self.loss].discriminator(real_output[0], fake_output[0])
        return {"d_loss": d_loss, "d_real_acc": d_real_acc, "d_fake_acc": d_fake_acc}
