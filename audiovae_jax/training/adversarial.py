"""One pass of the discriminator over real and generated audio.

It gives the losses of both sides, and their gradients.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from audiovae_jax.discriminators.base import Discriminator, takes_known_maps
from audiovae_jax.losses import AdversarialLossCalculator


class AdversarialPass(NamedTuple):
    """Losses, and functions that compute their gradients when called.

    Attributes:
      generator: the result of `AdversarialLossCalculator.generator_losses`.
      discriminator: the result of `AdversarialLossCalculator.discriminator_losses`.
      audio_gradient: computes the gradient with respect to the generated audio. It is that of the generator's total, or
        of the unweighted loss that the argument names.
      params_gradient: computes the gradient of the discriminator's loss, scheduled after its argument, an array.
    """

    generator: dict[str, jax.Array]
    discriminator: dict[str, jax.Array]
    audio_gradient: Callable[..., jax.Array]
    params_gradient: Callable[[jax.Array], Any]


def adversarial_pass(
    discriminator: nn.Module, losses: AdversarialLossCalculator, params, real: jax.Array, fake: jax.Array
) -> AdversarialPass:
    """Run the discriminator on `real` and `fake`, `[b, T, C]` each."""
    run = _joint_pass if takes_known_maps(discriminator) else _separate_passes
    passed = run(discriminator, *_loss_functions(losses), params, real, fake)
    return _penalized(passed, discriminator, losses, params, real, fake) if losses.is_penalized else passed


def _penalized(passed, discriminator, losses, params, real, fake):
    def penalty(params):
        return losses.penalty(lambda audio: discriminator.apply({"params": params}, audio), real, fake)

    value, gradient = jax.value_and_grad(penalty)(params)
    return passed._replace(
        discriminator={
            **passed.discriminator,
            "d_loss": passed.discriminator["d_loss"] + value,
            "gradient_penalty": value,
        },
        params_gradient=lambda after: jax.tree.map(jnp.add, passed.params_gradient(after), gradient),
    )


def separate_passes(
    discriminator: nn.Module, losses: AdversarialLossCalculator, params, real: jax.Array, fake: jax.Array
) -> AdversarialPass:
    """Do the same as `adversarial_pass`, with separate calls for `real` and `fake`."""
    return _separate_passes(discriminator, *_loss_functions(losses), params, real, fake)


def _loss_functions(losses):
    """Return the generator's and the discriminator's loss.

    Each maps `(real_output, fake_output)` to `(total, values)`.
    """

    def generator_loss(real_output, fake_output):
        values = losses.generator_losses(real_output, fake_output)
        return values["total_adv_loss"], values

    def discriminator_loss(real_output, fake_output):
        values = losses.discriminator_losses(real_output, fake_output)
        return values["d_loss"], values

    return generator_loss, discriminator_loss


def _joint_pass(discriminator: Discriminator, generator_loss, discriminator_loss, params, real, fake):
    """Run real and fake audio as one batch, in one forward and one backward pass."""

    def call(params, audio, known_maps=None):
        return discriminator.apply({"params": params}, audio, known_maps, method="discriminate")

    def halves(output):
        return jax.tree.map(_first_half, output), jax.tree.map(_second_half, output)

    output, pull_back = jax.vjp(lambda params: call(params, jnp.concatenate([real, fake])), params)
    real_output, fake_output = halves(output)
    (_, generator), fake_cotangent = jax.value_and_grad(lambda x: generator_loss(real_output, x), has_aux=True)(
        fake_output
    )
    (_, values), cotangent = jax.value_and_grad(lambda x: discriminator_loss(*halves(x)), has_aux=True)(output)

    def audio_gradient(name=None):
        _, pull_back_audio = jax.vjp(lambda audio: call(params, audio, known_maps=fake_output[1]), fake)
        return pull_back_audio(_cotangent(generator_loss, real_output, fake_output, name) or fake_cotangent)[0]

    def params_gradient(after):
        # Only the logits carry a cotangent. A barrier around the maps' zeros would make arrays of them.
        logits, feature_maps = cotangent
        return pull_back((lax.optimization_barrier((logits, after))[0], feature_maps))[0]

    return AdversarialPass(generator, values, audio_gradient, params_gradient)


def _cotangent(generator_loss, real_output, fake_output, name):
    """Return the gradient of a generator's loss with respect to the outputs.

    `name` is the loss. Without a name, the result is None.
    """
    return name and jax.grad(lambda x: generator_loss(real_output, x)[1][name])(fake_output)


def _first_half(x):
    return x[: x.shape[0] // 2]


def _second_half(x):
    return x[x.shape[0] // 2 :]


def _separate_passes(discriminator, generator_loss, discriminator_loss, params, real, fake):
    """Run real and fake audio in separate calls, for any linen module."""

    @jax.jit  # traced once for both calls
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

    def audio_gradient(name=None):
        # The unused gradient of the parameters is dropped by the compiler.
        return pull_back_fake(_cotangent(generator_loss, real_output, fake_output, name) or fake_cotangent)[1]

    def params_gradient(after):
        # One pull-back after the other is faster on CPUs than XLA's own order, but takes more memory.
        (of_real, real_maps), (of_fake, fake_maps) = cotangents
        of_real, _ = lax.optimization_barrier((of_real, after))
        from_real = pull_back_real((of_real, real_maps))[0]
        of_fake, from_real = lax.optimization_barrier((of_fake, from_real))
        return jax.tree.map(jnp.add, from_real, pull_back_fake((of_fake, fake_maps))[0])

    return AdversarialPass(generator, values, audio_gradient, params_gradient)
