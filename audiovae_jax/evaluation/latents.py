"""Statistics of latents: information, active channels, calibration."""

import numpy as np

from audiovae_jax.inference.calibration import RunningMoments
from audiovae_jax.models.audio_vae import AudioVAE, Posterior

# Variance of a channel's posterior mean above which it is active (Burda et al., 2016, "Importance weighted
# autoencoders").
ACTIVE = 1e-2
_INFORMATION = ("kl_nats_per_frame", "bits_per_second")  # columns of models with a posterior


class LatentStatistics:
    """Running statistics of the posterior and the calibrated latents, per channel.

    Args:
      latent_dim: channels of the latent.
      has_posterior: whether the model has a posterior. Without one, there is no KL divergence to report.
    """

    def __init__(self, latent_dim: int, *, has_posterior: bool = True):
        self._has_posterior = has_posterior
        self._means, self._latents = RunningMoments(latent_dim), RunningMoments(latent_dim)
        self._divergence = np.zeros(latent_dim)
        self._lanes = 1

    @classmethod
    def of(cls, model: AudioVAE) -> "LatentStatistics":
        """Return empty statistics of a model's latents."""
        return cls(model.latent_dim, has_posterior=model.posterior != "none")

    def add(self, posterior: Posterior):
        """Add `(z, mean, logvar)`, each `[n, lanes, latent_dim]`."""
        z, mean, logvar = (np.asarray(a, np.float64) for a in posterior)
        self._lanes = mean.shape[1]
        divergence = 0.5 * (np.square(mean) + np.exp(logvar) - 1 - logvar)
        self._divergence += divergence.sum(axis=(0, 1))
        self._means.add(mean)
        self._latents.add(z)

    def divergence(self) -> np.ndarray:
        """Return the KL divergence `[latent_dim]` in nats per frame, summed over lanes."""
        return self._divergence / max(1, self._means.count) * self._lanes

    def columns(self, seconds: float) -> dict[str, float]:
        """Return the columns of the table for audio of this length."""
        frames = self._means.count / self._lanes
        columns = {
            "kl_nats_per_frame": float(self.divergence().sum()),
            "active_channels": float((np.square(self._means.std) > ACTIVE).sum()),
            "latent_mean_abs": float(np.abs(self._latents.mean).mean()),
            "latent_std": float(self._latents.std.mean()),
            "bits_per_second": float(self.divergence().sum() * frames / np.log(2) / seconds),
        }
        return {name: value for name, value in columns.items() if self._has_posterior or name not in _INFORMATION}

    def channels(self) -> dict[str, list[float]]:
        """Return the statistics of each channel for the summary.

        They are the KL divergence, the variance of the posterior's mean, and the mean and standard deviation of the
        calibrated latents.
        """
        channels = {
            "kl_nats_per_frame": self.divergence().tolist(),
            "variance_of_mean": np.square(self._means.std).tolist(),
            "mean": self._latents.mean.tolist(),
            "std": self._latents.std.tolist(),
        }
        return {name: value for name, value in channels.items() if self._has_posterior or name not in _INFORMATION}
