"""What the discriminators share: the spectrogram conv stack, and the contract of their outputs."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from audiovae_jax.models.layers import Dtype, WNConv2d

# A discriminator's output: logits, and per logit the activations of every conv before it.
Output = tuple[list[jax.Array], list[list[jax.Array]]]

LEAKY_SLOPE = 0.1


class SpectrogramStack(nn.Module):
    """The 2-D convolutions over a spectrogram `[B, frames, bins, C]` (EnCodec, Défossez et al., 2022).

    The frames axis is strided and the bins axis dilated; trained weights depend on it.
    """

    filters: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x) -> tuple[jax.Array, list[jax.Array]]:
        layers = [(self.filters, 1, 1)] + [(min(4 * self.filters, 512), 2, d) for d in (1, 2, 4)]
        feature_maps = []
        for i, (features, stride, dilation) in enumerate(layers):
            x = WNConv2d(
                features,
                kernel_size=(3, 9),
                stride=(stride, 1),
                dilation=(1, dilation),
                padding=(1, 4 * dilation),
                dtype=self.dtype,
                name=f"conv_layers_{i}",
            )(x)
            x = nn.leaky_relu(x, LEAKY_SLOPE)
            feature_maps.append(x)
        logits = WNConv2d(1, kernel_size=(3, 3), padding=(1, 1), dtype=self.dtype, name="conv_post")(x)
        return logits, feature_maps


def require_audio(audio, in_channels: int, name: str):
    """Raise ValueError unless `audio` is `[B, T, in_channels]`."""
    if audio.ndim != 3 or audio.shape[-1] != in_channels:
        raise ValueError(f"{name} takes audio [B, T, {in_channels}], not {tuple(audio.shape)}")


def check_output(output: Any, name: str) -> Output:
    """Raise TypeError unless `output` is what a discriminator must return; say what it is instead."""

    def is_array(x):
        return hasattr(x, "shape") and hasattr(x, "dtype")

    wanted = f"{name} must return (logits: list of arrays, feature_maps: list of lists of arrays)"
    if not isinstance(output, tuple) or len(output) != 2:
        raise TypeError(f"{wanted}, but it returned {_describe(output)}")
    logits, feature_maps = output
    if not isinstance(logits, (list, tuple)) or not logits or not all(is_array(x) for x in logits):
        raise TypeError(f"{wanted}, but its logits are {_describe(logits)}")
    if not isinstance(feature_maps, (list, tuple)) or not all(
        isinstance(maps, (list, tuple)) and all(is_array(x) for x in maps) for maps in feature_maps
    ):
        raise TypeError(f"{wanted}, but its feature_maps are {_describe(feature_maps)}")
    if not any(len(maps) for maps in feature_maps):
        raise TypeError(f"{wanted}, but its feature_maps hold no array, so there is nothing to match")
    return output


def _describe(value):
    if isinstance(value, (list, tuple)):
        kinds = sorted({"array" if hasattr(x, "shape") else type(x).__name__ for x in value})
        return f"a {type(value).__name__} of {len(value)} ({', '.join(kinds) or 'empty'})"
    if hasattr(value, "shape"):
        return f"one array of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
