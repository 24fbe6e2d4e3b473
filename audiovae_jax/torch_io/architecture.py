"""Infers network architectures from the shapes of tensors."""

import math
from collections.abc import Mapping

import numpy as np

from audiovae_jax.errors import CheckpointError
from audiovae_jax.torch_io import layout
from audiovae_jax.torch_io.dialects import NATIVE, Dialect

# Shapes do not determine dilations, periods and scales; these are the usual ones.
_DILATIONS = (1, 3, 9)
_PERIODS = (2, 3, 5, 7, 11)
_SCALES = (1, 2, 4)
_MAX_DILATION = 1 << 15
_MAX_HOP = 1 << 20  # samples
_FFT_LENGTHS = (4, 65536)  # samples


def infer_audio_vae(state_dict: Mapping[str, np.ndarray], dialect: Dialect = NATIVE) -> dict:
    """Infer the size of an `AudioVAE`, except `dilations`, from its tensors.

    Args:
      state_dict: of the model, without prefix.
      dialect: of its names.

    Raises:
      CheckpointError: the tensors do not belong to an AudioVAE.
    """
    shapes = _Shapes(state_dict)
    blocks = count_blocks(state_dict, dialect)

    def name_of(*modules):
        return dialect.module(modules, blocks)

    base, channels, _ = shapes.weight(name_of("encoder", "input_conv"), 3)
    mults, strides = [], []
    for i in range(blocks):
        name = name_of("encoder", f"blocks_{i}", "downsample")
        width, _, taps = shapes.weight(name, 3)
        if width % base or taps % 2:
            raise CheckpointError(
                f"{name} has {width} channels and {taps} taps; "
                f"an AudioVAE of base width {base} has multiples of it, and an even number of taps"
            )
        mults.append(width // base)
        strides.append(taps // 2)
        if math.prod(strides) > _MAX_HOP:
            raise CheckpointError(
                f"its strides {strides} give a hop of {math.prod(strides)} samples, which no AudioVAE has"
            )
    if not mults:
        first = name_of("encoder", "blocks_0", "downsample")
        raise CheckpointError(f"the state dict has no {first}, so it is not an AudioVAE's")
    twice_latent, *_ = shapes.weight(name_of("encoder", "final_conv"), 3)
    *_, kernel_size = shapes.weight(name_of("encoder", "blocks_0", "res_units_0", "conv1"), 3)
    return {
        "in_channels": channels,
        "base_channels": base,
        "channel_mults": tuple(mults),
        "strides": tuple(strides),
        "latent_dim": twice_latent // 2,
        "kernel_size": kernel_size,
    }


def count_blocks(state_dict: Mapping[str, np.ndarray], dialect: Dialect = NATIVE) -> int:
    """Number of blocks of the encoder."""
    shapes, blocks = _Shapes(state_dict), 0
    while shapes.has(dialect.module(("encoder", f"blocks_{blocks}", "downsample"), blocks)):
        blocks += 1
    return blocks


def infer_kind(state_dict: Mapping[str, np.ndarray], dialect: Dialect, size: dict) -> dict:
    """Infer the kind of a model of another project from its tensors.

    Args:
      state_dict, dialect: see `infer_audio_vae`.
      size: the result of `infer_audio_vae`, whose `latent_dim` is corrected.

    Returns:
      Arguments of `AudioVAE`. `posterior` is missing if shapes do not determine it.

    Raises:
      CheckpointError: encoder and decoder do not fit together.
    """
    shapes = _Shapes(state_dict)
    blocks = len(size["strides"])

    def name_of(*modules):
        return dialect.module(modules, blocks)

    kind = dict(dialect.kind)
    snake = name_of("encoder", "final_snake")
    kind["activation"] = next(
        (name for leaf, name in (("beta", "snake_beta"), ("alpha", "snake")) if f"{snake}.{leaf}" in state_dict), "elu"
    )
    kind["final_bias"] = name_of("decoder", "final_conv") + ".bias" in state_dict
    channels, width, _ = shapes.weight(name_of("decoder", "final_conv"), 3)
    if channels != size["in_channels"]:
        raise CheckpointError(
            f"it encodes {size['in_channels']} channels and decodes {channels}; an AudioVAE has one number of channels"
        )
    kind["decoder_base_channels"] = None if width == size["base_channels"] else width
    ends = [("encoder", "final_conv"), ("decoder", "input_conv")]
    if dialect.projections:
        kind["bottleneck_channels"] = shapes.weight(name_of("encoder", "final_conv"), 3)[0]
        ends = [("encoder", "projection"), ("decoder", "projection")]
    encoded, size["latent_dim"] = (shapes.weight(name_of(*end), 3)[i] for i, end in enumerate(ends))
    fits = {1: "none", 2: "softplus"}.get(encoded / size["latent_dim"])
    if fits is None or fits != kind.get("posterior", fits):
        raise CheckpointError(
            f"its encoder has {encoded} output channels and its decoder {size['latent_dim']} input channels, unlike "
            f"any model of {dialect.name}"
        )
    if fits == "softplus":  # else there may be a bottleneck without weights
        kind["posterior"] = fits
    return kind


def count_dilations(state_dict: Mapping[str, np.ndarray]) -> int:
    """Number of residual units per block in a model's state dict."""
    return _count(_Shapes(state_dict), "encoder.blocks.0.res_units.{}.block.1")


def default_dilations(count: int) -> tuple[int, ...]:
    """Default dilations of `count` residual units: 1, 3, 9 and further powers of 3."""
    return _DILATIONS[:count] if count <= len(_DILATIONS) else tuple(3**i for i in range(count))


def check_dilations(dilations, count: int) -> tuple[int, ...]:
    """Return `dilations` as a tuple.

    Raises:
      CheckpointError: they are not `count` positive integers.
    """
    dilations = tuple(dilations)
    if len(dilations) != count or not all(isinstance(d, int) and 1 <= d <= _MAX_DILATION for d in dilations):
        raise CheckpointError(
            f"dilations={dilations} should be {count} whole numbers, one per residual unit of a block"
        )
    return dilations


def infer_ensemble(state_dict: Mapping[str, np.ndarray]) -> tuple[dict, list[str]]:
    """Infer the arguments of `EnCodecDiscriminator` from its tensors.

    FFT lengths come from the windows that torch keeps next to the weights, and mel bands from the filterbanks. Periods
    and pooling factors cannot be inferred.

    Args:
      state_dict: of the ensemble, with `msstft.*` keys at the top level.

    Returns:
      `(arguments, notes)`. The notes list what was assumed.

    Raises:
      CheckpointError: the tensors do not belong to such an ensemble.
    """
    shapes = _Shapes(state_dict)
    filters, *_ = shapes.weight("msstft.discriminators.0.conv_layers.0", 4)
    found, notes = {"stft_filters": filters}, []
    count = _count(shapes, "msstft.discriminators.{}.conv_post")
    windows = [state_dict.get(f"msstft.discriminators.{i}.window") for i in range(count)]
    if all(window is not None for window in windows):
        found["n_ffts"] = tuple(_fft_length(window.size) for window in windows)
    else:
        notes.append(f"it does not contain its {count} FFT lengths; those of config.discriminator.n_ffts are used")
    scales = _count(shapes, "msd.discriminators.{}.conv_post")
    found["use_msd"] = scales > 0
    if scales:
        found["in_channels"] = shapes.weight("msd.discriminators.0.convs.0", 3)[1]
        found["msd_scales"] = _SCALES[:scales] if scales <= len(_SCALES) else tuple(2**i for i in range(scales))
        notes.append(f"it does not contain its {scales} pooling factors; {found['msd_scales']} is assumed")
    periods = _count(shapes, "mpd.discriminators.{}.conv_post")
    found["use_mpd"] = periods > 0
    if periods:
        found["in_channels"] = shapes.weight("mpd.discriminators.0.convs.0", 4)[1]
        layers = _count(shapes, "mpd.discriminators.0.convs.{}")
        found["mpd_channels"] = tuple(shapes.weight(f"mpd.discriminators.0.convs.{i}", 4)[0] for i in range(layers))
        if periods > len(_PERIODS):
            raise CheckpointError(f"it does not contain its {periods} periods; give config.discriminator.mpd_periods")
        found["mpd_periods"] = _PERIODS[:periods]
        notes.append(f"it does not contain its {periods} periods; {found['mpd_periods']} is assumed")
    mels = _count(shapes, "mel_stft.discriminators.{}.conv_post")
    found["use_mel_stft"] = mels > 0
    if mels:
        found["mel_stft_filters"], found["in_channels"], *_ = shapes.weight(
            "mel_stft.discriminators.0.conv_layers.0", 4
        )
        stem = "mel_stft.discriminators.{}.mel_transform.mel_scale.fb"
        banks = [state_dict.get(stem.format(i)) for i in range(mels)]
        if all(bank is not None and bank.ndim == 2 for bank in banks):
            found["mel_stft_n_ffts"] = tuple(_fft_length(2 * (bank.shape[0] - 1)) for bank in banks)
            found["mel_stft_n_mels"] = tuple(bank.shape[1] for bank in banks)
        else:
            notes.append("it does not contain its mel filterbanks; config.discriminator.mel_stft_* is used")
    return found, notes


def _fft_length(length):
    if not _FFT_LENGTHS[0] <= length <= _FFT_LENGTHS[1]:
        raise CheckpointError(f"it has an FFT of {length} samples, which no discriminator here supports")
    return length


def _count(shapes, pattern):
    count = 0
    while shapes.has(pattern.format(count)):
        count += 1
    return count


class _Shapes:
    """The shapes of convolution weights, under any of their key formats."""

    def __init__(self, state_dict):
        self._state_dict = state_dict

    def has(self, module):
        return self._find(module) is not None

    def weight(self, module, dimensions):
        tensor = self._find(module)
        if tensor is None:
            raise CheckpointError(f"the state dict has no weight of {module}, so the network cannot be inferred")
        if tensor.ndim != dimensions or 0 in tensor.shape:
            raise CheckpointError(f"the weight of {module} has shape {tensor.shape}; {dimensions} axes are expected")
        return tensor.shape

    def _find(self, module):
        key = f"{module}.weight_v"
        names = (key, layout.parametrized_key(key), f"{module}.weight")
        return next((self._state_dict[name] for name in names if name in self._state_dict), None)
