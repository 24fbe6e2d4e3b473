"""The receptive field: the latent frames that make a window's result exact."""

from typing import NamedTuple

from audiovae_jax.models.audio_vae import AudioVAE
from audiovae_jax.models.layer_list import decoder_layers, encoder_layers, inputs


class Context(NamedTuple):
    """Numbers of frames before and after a result's own that it depends on."""

    before: int
    after: int


def encoder_context(model: AudioVAE) -> Context:
    """Return the audio that the encoder needs around a frame, in frames."""
    low, high = inputs(encoder_layers(model), 0, 0)
    hop = model.hop_length
    return Context(before=-(low // hop), after=max(0, high // hop))


def decoder_context(model: AudioVAE) -> Context:
    """Return the latent frames that the decoder needs around a frame to decode it."""
    low, high = inputs(decoder_layers(model), 0, model.hop_length - 1)
    return Context(before=-low, after=high)
