"""What a model's latents are like: how much they tell, which of them are used, whether they are calibrated."""

import numpy as np

from audiovae_jax.inference.calibration import RunningMoments
from audiovae_jax.models.audio_vae import Posterior

ACTIVE = 1e-2  # variance of a channel's posterior mean (Burda et al., 2016, "Importance weighted autoencoders")


class LatentStatistics:
    """The posterior and the calibrated latents of audio, channel by channel, over all that comes.

    Args:
      latent_dim: channels of the latent.
    """

    def __init__(self, latent_dim: int):
        self._means, self._latents = RunningMoments(latent_dim), RunningMoments(latent_dim)
        self._divergence = np.zeros(latent_dim)
        self._lanes = 1

    def add(self, posterior: Posterior):
        """Take in `(z, mean, logvar)`, each `[n, lanes, latent_dim]`."""
        z, mean, logvar = (np.asarray(a, np.float64) for a in posterior)
        self._lanes = mean.shape[1]
        divergence = 0.5 * (np.square(mean) + np.exp(logvar) - 1 - logvar)
        self._divergence += divergence.sum(axis=(0, 1))
        self._means.add(mean)
        self._latents.add(z)

    def divergence(self) -> np.ndarray:
        """`[latent_dim]`: nats a frame of each channel, summed over lanes."""
        return self._divergence / max(1, self._means.count) * self._lanes

    def columns(self, seconds: float) -> dict[str, float]:
        """The columns of the table, for audio of that length."""
        frames = self._means.count / self._lanes
        return {
            "kl_nats_per_frame": float(self.divergence().sum()),
            "active_channels": float((np.square(self._means.std) > ACTIVE).sum()),
            "latent_mean_abs": float(np.abs(self._latents.mean).mean()),
            "latent_std": float(self._latents.std.mean()),
            "bits_per_second": float(self.divergence().sum() * frames / np.log(2) / seconds),
        }

    def channels(self) -> dict[str, list[float]]:
        """Each channel's divergence, variance of its mean, and calibrated mean and deviation, for the summary."""
        return {
            "kl_nats_per_frame": self.divergence().tolist(),
            "variance_of_mean": np.square(self._means.std).tolist(),
            "mean": self._latents.mean.tolist(),
            "std": self._latents.std.tolist(),
        }
