"""What a discriminator says of real and generated audio, what that costs both sides, and the gradients of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from audiovae_jax.discriminators.stack import Judge, is_judge
from audiovae_jax.losses import AdversarialLossCalculator


class Verdict(NamedTuple):
    """Losses, and functions that compute a gradient of them when they are called.

    Attributes:
      generator: of `AdversarialLossCalculator.generator_losses`.
      discriminator: of `AdversarialLossCalculator.discriminator_losses`.
      audio_gradient: of the generator's total with respect to the generated audio.
      params_gradient: of the discriminator's loss; takes arrays that are to be computed before.
    """

    generator: dict[str, jax.Array]
    discriminator: dict[str, jax.Array]
    audio_gradient: Callable[[], jax.Array]
    params_gradient: Callable[[Any], Any]


def judge(discriminator: nn.Module, losses: AdversarialLossCalculator, params, real, fake) -> Verdict:
    """Judge `real` and `fake`, `[b, T, C]` each."""
    judged = _together if is_judge(discriminator) else _apart

    def generator_loss(real_output, fake_output):
        values = losses.generator_losses(real_output, fake_output)
        return values["total_adv_loss"], values

    def discriminator_loss(real_output, fake_output):
        values = losses.discriminator_losses(real_output, fake_output)
        return values["d_loss"], values

    return judged(discriminator, generator_loss, discriminator_loss, params, real, fake)


def _together(discriminator: Judge, generator_loss, discriminator_loss, params, real, fake):
    """Of one batch: one forward pass and one way back to the parameters are compiled, not two of each."""

    def call(params, audio, known=None):
        return discriminator.apply({"params": params}, audio, known, method="judge")

    def halves(output):
        return jax.tree.map(_first_half, output), jax.tree.map(_second_half, output)

    output, pull_back = jax.vjp(lambda params: call(params, jnp.concatenate([real, fake])), params)
    real_output, fake_output = halves(output)
    (_, generator), fake_cotangent = jax.value_and_grad(lambda x: generator_loss(real_output, x), has_aux=True)(
        fake_output
    )
    (_, values), cotangent = jax.value_and_grad(lambda x: discriminator_loss(*halves(x)), has_aux=True)(output)

    def audio_gradient():
        # What the generated audio was found to be is known: only the way back is computed.
        _, pull_back_audio = jax.vjp(lambda audio: call(params, audio, fake_output[1]), fake)
        return pull_back_audio(fake_cotangent)[0]

    def params_gradient(after):
        # The loss is of the logits alone: the feature maps' cotangents are zeros, which a barrier would make arrays.
        logits, feature_maps = cotangent
        return pull_back((lax.optimization_barrier((logits, after))[0], feature_maps))[0]

    return Verdict(generator, values, audio_gradient, params_gradient)


def _first_half(x):
    return x[: x.shape[0] // 2]


def _second_half(x):
    return x[x.shape[0] // 2 :]


def _apart(discriminator, generator_loss, discriminator_loss, params, real, fake):
    """Each alone, with any module."""

    @jax.jit  # so that it is traced once for real and generated audio
    def call(params, audio):
        return discriminator.apply({"params": params}, audio)

    real_output, pull_back_real = jax.vjp(lambda params: call(params, real), params)
    fake_output, pull_back_fake = jax.vjp(call, params, fake)
    (_, generator), fake_cotangent = jax.value_and_grad(lambda x: generator_loss(real_output, x), has_aux=True)(
        fake_output
    )
    (_, values), cotangents = jax.value_and_grad(discriminator_loss, argnums=(0, 1), has_aux=True)(
        real_output, fake_output
    )

    def audio_gradient():
        # The parameters' half of this pull-back is not used, so the compiler drops it.
        return pull_back_fake(fake_cotangent)[1]

    def params_gradient(after):
        # One pull-back after the other is faster on a CPU than XLA's own order, if it takes more memory.
        (of_real, real_maps), (of_fake, fake_maps) = cotangents
        of_real, _ = lax.optimization_barrier((of_real, after))
        from_real = pull_back_real((of_real, real_maps))[0]
        of_fake, from_real = lax.optimization_barrier((of_fake, from_real))
        return jax.tree.map(jnp.add, from_real, pull_back_fake((of_fake, fake_maps))[0])

    return Verdict(generator, values, audio_gradient, params_gradient)
