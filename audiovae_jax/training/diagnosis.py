"""Statistics of latent and discriminator that are too slow for every step.

Like the steps, this is a pure function of one device under a mapped axis `data`. It computes one forward pass, one
more pass of the decoder, and the gradient of each loss with respect to the reconstruction.
"""

import jax
import jax.numpy as jnp
from jax import lax

from audiovae_jax.distributed.mesh import AXIS
from audiovae_jax.losses import adversarial as gan
from audiovae_jax.losses.kl import kl_per_channel
from audiovae_jax.training.state import TrainState
from audiovae_jax.training.step import Recipe, latent_noise


def diagnose(state: TrainState, audio: jax.Array, *, recipe: Recipe, adversarial: bool) -> dict[str, jax.Array]:
    """Statistics of one device's shard, averaged over devices.

    They may be averaged over batches too.

    Args:
      state: the same on every device.
      audio: `[b, T, C]` of validation audio.
      recipe: the run's recipe.
      adversarial: whether the discriminator takes part.

    Returns:
      A dict with

      - `kl_per_channel: [latent_dim]`: in nats per frame; not without a posterior.
      - `mean`, `mean_square: [latent_dim]`: of the posterior's mean.
      - `square`: the mean square of the reconstruction.
      - `change_square`: the mean square of its difference to the decoded origin of the latent space.

      and, with the discriminator,

      - `d_loss`, `d_real_acc`, `d_fake_acc: [n]`: of every sub-discriminator.
      - `feature_matching_share`: of the sum of absolute weighted losses of the generator.
      - `reconstruction_gradient`, `adversarial_gradient`, `feature_matching_gradient`: squared norms of the gradients
        of these weighted losses at the decoder's output.
    """
    output = recipe.model.apply(state.variables, audio, noise=latent_noise(recipe, 0, audio))
    reconstruction = output.reconstruction
    without = recipe.model.apply(state.variables, jnp.zeros_like(output.z), method="decode")
    is_certain = recipe.model.posterior == "none"
    length = min(audio.shape[1], without.shape[1])
    figures = {
        **({} if is_certain else {"kl_per_channel": kl_per_channel(mean=output.mean, logvar=output.logvar)}),
        "mean": jnp.mean(output.mean, axis=(0, 1)),
        "mean_square": jnp.mean(jnp.square(output.mean), axis=(0, 1)),
        "square": jnp.mean(jnp.square(reconstruction)),
        "change_square": jnp.mean(jnp.square(reconstruction[:, :length] - without[:, :length])),
    }
    if adversarial:
        figures |= _of_the_discriminator(state, audio, output, recipe)
    return lax.pmean(figures, AXIS)


def _of_the_discriminator(state, audio, output, recipe):
    calculator = recipe.adversarial.at(state.step)

    @jax.jit
    def discriminate(audio):
        return recipe.discriminator.apply({"params": state.discriminator_params}, audio)

    real = discriminate(audio)
    fake, pull_back = jax.vjp(discriminate, output.reconstruction)

    def reconstruction_loss(reconstruction):
        return recipe.losses(prediction=reconstruction, target=audio)[0]

    def adversarial_loss(fake):
        return calculator.adversarial_weight * gan.LOSSES[calculator.loss].generator(real[0], fake[0])

    def feature_matching_loss(fake):
        return calculator.feature_matching_weight * gan.feature_matching(real[1], fake[1])

    values, gradients = {}, {}
    values["reconstruction"], gradients["reconstruction"] = jax.value_and_grad(reconstruction_loss)(
        output.reconstruction
    )
    for name, loss in (("adversarial", adversarial_loss), ("feature_matching", feature_matching_loss)):
        values[name], cotangent = jax.value_and_grad(loss)(fake)
        (gradients[name],) = pull_back(cotangent)
    if recipe.model.posterior != "none":
        values["kl"] = recipe.kl.weight_at(state.step) * recipe.kl(output.mean, output.logvar)
    total = sum(jnp.abs(value) for value in values.values())
    return {
        **gan.by_discriminator(real[0], fake[0], calculator.loss),
        "feature_matching_share": jnp.abs(values["feature_matching"]) / jnp.maximum(total, 1e-20),
        **{f"{name}_gradient": jnp.sum(jnp.square(gradient)) for name, gradient in gradients.items()},
    }
