"""KL divergence of the latent from the standard normal.

The definition is that of Kingma and Welling, 2014. It includes the factor 1/2, which the KL term of stable-audio-tools
and DACVAE lacks. So a weight `w` there equals `2 * w` here, with `reduction="frame"`.
"""

import dataclasses
import math

import jax
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


def kl_bits_per_second(*, mean, logvar, frame_rate):
    """Return the divergence in bits per second of audio, averaged over the batch.

    Args:
      mean, logvar: `[B, frames, latent_dim]`.
      frame_rate: latent frames per second: the sample rate divided by the hop length.

    Returns:
      A float32 scalar.
    """
    return kl_divergence(mean=mean, logvar=logvar, reduction="frame") * (frame_rate / math.log(2))


def target_kl(*, rate, target):
    """Return `(rate / target - 1)^2`.

    It is the `(KL - KL*)^2` of "Taming Audio VAEs via Target-KL Regularization" (arXiv 2605.17085, 2026), relative to
    the target, so that one weight suits every target.

    Args:
      rate, target: in one unit, such as bits per second.
    """
    return jnp.square(rate / target - 1)


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
      cycle_steps: steps after which the warm-up restarts (cyclic annealing, Fu et al., 2019); 0 for a single warm-up.
      target_bits_per_second: if set, the term is `target_kl` of the batch's rate. It replaces `reduction`.
      frame_rate: latent frames per second, required by a target.
      axis_name: mapped axis over whose devices the rate of a target is averaged, or None.
    """

    weight: float = 1e-4
    warmup_steps: int = 5000
    free_bits: float = 0.0
    reduction: str = "sum"
    cycle_steps: int = 0
    target_bits_per_second: float | None = None
    frame_rate: float | None = None
    axis_name: str | None = None

    def __post_init__(self):
        for name in ("weight", "warmup_steps", "free_bits", "cycle_steps"):
            require_range(name, getattr(self, name))
        if self.cycle_steps:
            require_range("warmup_steps", self.warmup_steps, below=self.cycle_steps + 1)
        if self.target_bits_per_second is not None:
            require_range("target_bits_per_second", self.target_bits_per_second, above=0)
            if self.frame_rate is None:
                raise ValueError("target_bits_per_second needs frame_rate, the latent frames per second")
            if self.free_bits:
                raise ValueError("free_bits and target_bits_per_second are both set; set only one")

    def weight_at(self, step):
        """Return the weight at `step`, or the Python number 0 if the term is disabled."""
        if is_off(self.weight):
            return 0.0
        step = step % self.cycle_steps if self.cycle_steps else step
        share = jnp.where(step < self.warmup_steps, step / jnp.maximum(self.warmup_steps, 1), 1.0)
        return jnp.asarray(self.weight * share, jnp.float32)

    def __call__(self, mean, logvar):
        """Return the unweighted term for `[B, frames, latent_dim]` inputs."""
        if self.target_bits_per_second is not None:
            return target_kl(rate=self._rate(mean, logvar), target=self.target_bits_per_second)
        return kl_divergence(mean=mean, logvar=logvar, free_bits=self.free_bits, reduction=self.reduction)

    def metrics(self, mean, logvar):
        """Return `{"kl_bits_per_second": rate}` if there is a target, else an empty dict."""
        return {} if self.target_bits_per_second is None else {"kl_bits_per_second": self._rate(mean, logvar)}

    def _rate(self, mean, logvar):
        rate = kl_bits_per_second(mean=mean, logvar=logvar, frame_rate=self.frame_rate)
        if self.axis_name is None:
            return rate
        # The value is that of the global batch. The gradient is that of this device's rows. Averaged over devices, it
        # is the gradient of the global batch.
        return rate + jax.lax.stop_gradient(jax.lax.pmean(rate, self.axis_name) - rate)
