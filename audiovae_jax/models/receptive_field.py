"""The model's receptive field: the latent frames of context that make a window's result exact."""

import math
from typing import NamedTuple

from audiovae_jax.models.audio_vae import AudioVAE


class Context(NamedTuple):
    """Numbers of latent frames before and after a result's own frame that the result depends on."""

    before: int
    after: int


def encoder_context(model: AudioVAE) -> Context:
    """Return the audio that the encoder needs around a frame's own samples, in frames."""
    low = high = 0  # range of positions that one latent frame depends on, traced back layer by layer to samples
    low, high = low - 1, high + 1  # the final convolution of 3 taps
    for stride in reversed(model.strides):
        padding = model.padding_of(stride)
        low, high = low * stride - padding, high * stride - padding + 2 * stride - 1
        low, high = low - _residual_reach(model), high + _residual_reach(model)
    low, high = low - 3, high + 3  # the input convolution of 7
    hop = model.hop_length
    return Context(before=math.ceil(-low / hop), after=math.ceil((high + 1) / hop) - 1)


def decoder_context(model: AudioVAE) -> Context:
    """Return the latent frames that the decoder needs around a frame to decode it."""
    low, high = 0, model.hop_length - 1
    low, high = low - 3, high + 3  # the final convolution of 7 taps
    for stride in model.strides:
        low, high = low - _residual_reach(model), high + _residual_reach(model)
        padding = model.padding_of(stride)
        # An output position sees the inputs i with 0 <= position + padding - i * stride < 2 * stride.
        low, high = -((2 * stride - 1 - padding - low) // stride), (high + padding) // stride
    low, high = low - 3, high + 3  # the input convolution of 7
    return Context(before=-low, after=high)


def _residual_reach(model):
    return sum((model.kernel_size - 1) * dilation // 2 for dilation in model.dilations)
