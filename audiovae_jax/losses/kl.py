"""KL divergence of the latent from the standard normal (Kingma and Welling, 2014).

It has the factor 1/2. The KL term of stable-audio-tools and DACVAE does not. A weight quoted there is twice that
weight here, with `reduction="frame"`.
"""

import dataclasses

import jax.numpy as jnp

from audiovae_jax.errors import require_range
from audiovae_jax.losses.weighted import is_off


def kl_divergence(*, mean, logvar, free_bits=0.0, reduction="sum"):
    """Return `-0.5 * (1 + logvar - mean^2 - exp(logvar))`, reduced to a scalar.

    Args:
      mean, logvar: `[B, frames, latent_dim]`.
      free_bits: lower bound of each element's divergence in nats (Kingma et al., 2016).
      reduction: "sum" sums over latents and time and averages over the batch, so the result grows with the crop
        length. "frame" divides that by the number of frames, so one weight suits every crop length.

    Returns:
      A float32 scalar in nats.
    """
    if reduction not in ("sum", "frame"):
        raise ValueError(f'reduction={reduction!r} is neither "sum" nor "frame"')
    elements = _elements(mean, logvar)
    if free_bits:
        elements = jnp.maximum(elements, free_bits)
    total = jnp.mean(jnp.sum(elements, axis=(1, 2)))
    return total / mean.shape[1] if reduction == "frame" else total


def kl_per_channel(*, mean, logvar):
    """Return each latent channel's divergence in nats per frame.

    Args:
      mean, logvar: `[B, frames, latent_dim]`.

    Returns:
      `[latent_dim]`.
    """
    return jnp.mean(_elements(mean, logvar), axis=(0, 1))


def _elements(mean, logvar):
    mean, logvar = mean.astype(jnp.float32), logvar.astype(jnp.float32)
    return -0.5 * (1 + logvar - jnp.square(mean) - jnp.exp(logvar))


@dataclasses.dataclass(frozen=True)
class KLTerm:
    """The weighted KL term of the training objective.

    Attributes:
      weight: weight after the warm-up.
      warmup_steps: steps over which the weight rises linearly from 0; 0 for no warm-up.
      free_bits: lower bound of each element's divergence in nats.
      reduction: "sum" or "frame", see `kl_divergence`.
    """

    weight: float = 1e-4
    warmup_steps: int = 5000
    free_bits: float = 0.0
    reduction: str = "sum"

    def __post_init__(self):
        for name in ("weight", "warmup_steps", "free_bits"):
            require_range(name, getattr(self, name))

    def weight_at(self, step):
        """Return the weight at `step`, or the Python number 0 if the term is disabled."""
        if is_off(self.weight):
            return 0.0
        share = jnp.where(step < self.warmup_steps, step / jnp.maximum(self.warmup_steps, 1), 1.0)
        return jnp.asarray(self.weight * share, jnp.float32)

    def __call__(self, mean, logvar):
        """Return the unweighted divergence for `[B, frames, latent_dim]` inputs."""
        return kl_divergence(mean=mean, logvar=logvar, free_bits=self.free_bits, reduction=self.reduction)
