"""Multi-scale waveform discriminator (MelGAN, Kumar et al., 2019)."""

import flax.linen as nn
import jax.numpy as jnp

from audiovae_jax.discriminators.stack import LEAKY_SLOPE, Output, require_audio
from audiovae_jax.models.layers import Dtype, WNConv1d

# features, kernel size, stride, groups
_LAYERS = (
    (16, 15, 1, 1),
    (64, 41, 4, 4),
    (256, 41, 4, 16),
    (256, 41, 4, 64),
    (512, 41, 4, 256),
    (512, 5, 1, 1),
)


class MultiScaleDiscriminator(nn.Module):
    """Grouped 1-D convolutions over the waveform at several average-pooled scales.

    Attributes:
      scales: pooling factors, one sub-discriminator for each.
      in_channels: audio channels.
      dtype: what the convolutions compute in.
    """

    scales: tuple[int, ...] = (1, 2, 4)
    in_channels: int = 2
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, audio) -> Output:
        require_audio(audio, self.in_channels, "MultiScaleDiscriminator")
        outputs = [
            _ScaleDiscriminator(jnp.dtype(self.dtype), name=f"discriminators_{i}")(_average_pool(audio, scale))
            for i, scale in enumerate(self.scales)
        ]
        return [logits for logits, _ in outputs], [maps for _, maps in outputs]


class _ScaleDiscriminator(nn.Module):
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        feature_maps = []
        for i, (features, kernel_size, stride, groups) in enumerate(_LAYERS):
            x = WNConv1d(
                features,
                kernel_size=kernel_size,
                stride=stride,
                padding=kernel_size // 2,
                groups=groups,
                dtype=self.dtype,
                name=f"convs_{i}",
            )(x)
            x = nn.leaky_relu(x, LEAKY_SLOPE)
            feature_maps.append(x)
        logits = WNConv1d(1, kernel_size=3, padding=1, dtype=self.dtype, name="conv_post")(x)
        return logits, feature_maps


def _average_pool(audio, scale):
    """`[B, T, C]` to `[B, T // scale, C]`."""
    b, t, c = audio.shape
    return jnp.mean(audio[:, : t // scale * scale].reshape(b, t // scale, scale, c), axis=2)
