"""The balancer of gradients of EnCodec (Defossez et al., 2022)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from audiovae_jax.losses.weighted import is_off


def balanced_gradient(
    gradients: Mapping[str, jax.Array], weights: Mapping[str, float], total_norm: float, axis_name: str | None = None
) -> jax.Array:
    """Sum gradients so that each has its share of the norm, at any loss scale.

    The sum is of `total_norm * weight / sum(weights) * gradient / norm`. A norm is the L2 norm of an item, averaged
    over this batch. EnCodec averages it over past batches too.

    Args:
      gradients: by name, of each loss with respect to the generated audio, `[B, T, C]`.
      weights: by the same names; a loss of weight 0 is left out.
      total_norm: of the sum, if all gradients point in one direction.
      axis_name: mapped axis over whose devices the norms are averaged, or None.

    Returns:
      The sum, `[B, T, C]`.
    """
    names = [name for name in gradients if not is_off(weights[name])]
    total = sum(weights[name] for name in names)
    balanced = 0.0
    for name in names:
        gradient = gradients[name]
        norm = jnp.mean(jnp.sqrt(jnp.sum(jnp.square(gradient), axis=(1, 2))))
        if axis_name is not None:
            norm = jax.lax.pmean(norm, axis_name)
        balanced += total_norm * weights[name] / total * gradient / (norm + 1e-12)
    return balanced
