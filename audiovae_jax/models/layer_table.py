"""The model's layers as a table: widths, rates, receptive fields and parameters."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from audiovae_jax.models.audio_vae import AudioVAE
from audiovae_jax.models.layer_list import Conv, Residual, decoder_layers, encoder_layers, inputs
from audiovae_jax.models.layers import count_parameters


class Row(NamedTuple):
    """A layer or block of the encoder or decoder.

    Attributes:
      name: its path in the parameters.
      width: output channels.
      stride: audio samples per output position.
      receptive_field: audio samples that one output position depends on; in the decoder, the samples of the latent
        frames that it depends on.
      parameters: number of parameters, including those of the activation before it.
    """

    name: str
    width: int
    stride: int
    receptive_field: int
    parameters: int


def layer_table(model: AudioVAE, params: dict) -> list[Row]:
    """Return the layers from audio to latent, and back to audio.

    Args:
      model: the model.
      params: its parameters, as arrays or shapes.
    """
    encoder = _rows("encoder", encoder_layers(model), params["encoder"], 1)
    return [*encoder, *_rows("decoder", decoder_layers(model), params["decoder"], model.hop_length)]


def _rows(part, layers, params, unit) -> Iterator[Row]:
    """Yield the rows of a network whose input has `unit` audio samples per position."""
    stride = unit
    for name, members in itertools.groupby(enumerate(layers, start=1), lambda member: _module(member[1])):
        members = list(members)
        for _, layer in members:
            if isinstance(layer, Conv):
                stride = stride // layer.stride if layer.is_transposed else stride * layer.stride
        low, high = inputs(layers[: members[-1][0]], 0, 0)
        modules = [params[name], params.get("final_snake", {}) if name == "final_conv" else {}]
        yield Row(f"{part}/{name}", _width(members, params), stride, (high - low + 1) * unit, count_parameters(modules))


def _module(layer):
    """Return the module of a layer; the final activation belongs to `final_conv`."""
    name = layer.layers[0].path[0] if isinstance(layer, Residual) else layer.path[0]
    return "final_conv" if name == "final_snake" else name


def _width(members, params):
    (*_, last) = (conv for _, layer in members for conv in getattr(layer, "layers", (layer,)) if isinstance(conv, Conv))
    for name in last.path:
        params = params[name]
    return (params["v"] if "v" in params else params["kernel"]).shape[-1]
