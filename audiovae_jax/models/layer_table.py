"""The model's layers as a table: widths, rates, receptive fields and parameters."""

from typing import NamedTuple

from audiovae_jax.models.audio_vae import AudioVAE
from audiovae_jax.models.layers import count_parameters


class Layer(NamedTuple):
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


def layer_table(model: AudioVAE) -> list[Layer]:
    """Return the layers from audio to latent, and back to audio."""
    shapes = model.shapes()["params"]
    return [*_encoder_rows(model, shapes["encoder"]), *_decoder_rows(model, shapes["decoder"])]


def _encoder_rows(model, shapes):
    stride, field = 1, 7  # the input convolution of 7 taps
    yield _row("encoder", shapes, ("input_conv",), stride, field)
    for i, factor in enumerate(model.strides):
        field += _residual_taps(model) * stride + (2 * factor - 1) * stride
        stride *= factor
        yield _row("encoder", shapes, (f"blocks_{i}",), stride, field, _width(shapes[f"blocks_{i}"]["downsample"]))
    field += 2 * stride  # the final convolution of 3
    yield _row("encoder", shapes, ("final_conv", "final_snake"), stride, field)
    if "projection" in shapes:
        yield _row("encoder", shapes, ("projection",), stride, field)


def _decoder_rows(model, shapes):
    stride = field = model.hop_length
    if "projection" in shapes:
        yield _row("decoder", shapes, ("projection",), stride, field)
    field += 6 * stride  # the input convolution of 7 taps
    yield _row("decoder", shapes, ("input_conv",), stride, field)
    for i, factor in enumerate(reversed(model.strides)):
        field += stride  # each output of a transposed convolution depends on two positions
        stride //= factor
        field += _residual_taps(model) * stride
        yield _row("decoder", shapes, (f"blocks_{i}",), stride, field, _width(shapes[f"blocks_{i}"]["upsample"]))
    yield _row("decoder", shapes, ("final_conv", "final_snake"), stride, field + 6 * stride)


def _row(part, shapes, names, stride, field, width=None):
    name, *others = names
    parameters = count_parameters([shapes[name], *(shapes[other] for other in others if other in shapes)])
    return Layer(f"{part}/{name}", _width(shapes[name]) if width is None else width, stride, field, parameters)


def _width(convolution):
    return (convolution["v"] if "v" in convolution else convolution["kernel"]).shape[-1]


def _residual_taps(model):
    return sum((model.kernel_size - 1) * dilation for dilation in model.dilations)
