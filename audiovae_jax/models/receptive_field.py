"""The model's receptive field: the latent frames of context that make a window's result exact."""

import math
from typing import NamedTuple

from audiovae_jax.models.audio_vae import AudioVAE


class Context(NamedTuple):
    """Latent frames before and after its own that a result depends on."""

    before: int
    after: int


def encoder_context(model: AudioVAE) -> Context:
    """Frames of audio that the encoder needs around a latent frame's own `hop_length` samples."""
    low = high = 0  # the positions that one latent frame depends on, layer by layer, down to samples
    low, high = low - 1, high + 1  # the final convolution of 3 taps
    for stride in reversed(model.strides):
        padding = stride // 2
        low, high = low * stride - padding, high * stride - padding + 2 * stride - 1
        low, high = low - _residual_reach(model), high + _residual_reach(model)
    low, high = low - 3, high + 3  # the input convolution of 7
    hop = model.hop_length
    return Context(before=math.ceil(-low / hop), after=math.ceil((high + 1) / hop) - 1)


def decoder_context(model: AudioVAE) -> Context:
    """Latent frames that the decoder needs around a frame to compute its `hop_length` samples."""
    low, high = 0, model.hop_length - 1
    low, high = low - 3, high + 3  # the final convolution of 7 taps
    for stride in model.strides:
        low, high = low - _residual_reach(model), high + _residual_reach(model)
        padding = stride // 2
        # An output position sees the inputs i with 0 <= position + padding - i * stride < 2 * stride.
        low, high = -((2 * stride - 1 - padding - low) // stride), (high + padding) // stride
    low, high = low - 3, high + 3  # the input convolution of 7
    return Context(before=-low, after=high)


def _residual_reach(model):
    return sum((model.kernel_size - 1) * dilation // 2 for dilation in model.dilations)
