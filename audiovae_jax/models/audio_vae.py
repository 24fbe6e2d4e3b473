"""The audio VAE, from residual units and blocks to the whole model.

It is the convolutional autoencoder of SoundStream (Zeghidour et al., 2021) and DAC (Kumar et al., 2023), with a
Gaussian latent instead of their quantiser. Audio is `[B, T, C]` in -1..1. With other options, it is the model of DAC or
of Stable Audio ("Oobleck"; Evans et al., 2024), whose weights `torch_io` imports.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from audiovae_jax.models.layers import (
    ACTIVATIONS,
    Dtype,
    WNConv1d,
    WNConvTranspose1d,
    fold_weight_norm,
    normalized_dtype,
)
from audiovae_jax.models.padding import PADDINGS, around, around_strided, downsampled, upsampled
from audiovae_jax.models.posterior import POSTERIORS, parameters_per_latent
from audiovae_jax.models.span import Span, clear_outside

# The arguments that define the architecture. The first ones give its size, the others its kind.
SIZE_KEYS = ("in_channels", "base_channels", "channel_mults", "strides", "latent_dim", "kernel_size", "dilations")
KIND_KEYS = (
    *("activation", "posterior", "padding", "final_bias", "final_tanh"),
    *("decoder_base_channels", "bottleneck_channels"),
)
CONFIG_KEYS = (*SIZE_KEYS, *KIND_KEYS)
_STD_FLOOR = 1e-8


class Posterior(NamedTuple):
    """The encoder's output: a sample and its Gaussian.

    Each is `[B, frames, latent_dim]`. `z` is calibrated: `(sample - latent_mean) / (latent_std + 1e-8)`. `mean` and
    `logvar` are not.
    """

    z: jax.Array
    mean: jax.Array
    logvar: jax.Array


class Reconstruction(NamedTuple):
    """The model's output: `reconstruction: [B, T, C]`, and the fields of `Posterior`."""

    reconstruction: jax.Array
    z: jax.Array
    mean: jax.Array
    logvar: jax.Array


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The arguments that encoder and decoder share, and the layers that follow."""

    base_channels: int
    channel_mults: tuple[int, ...]
    strides: tuple[int, ...]
    kernel_size: int
    dilations: tuple[int, ...]
    activation_name: str
    padding: str
    dtype: Dtype
    weight_norm: bool
    remat: bool

    def conv(self, features: int, kernel_size: int, name: str, *, dilation: int = 1, bias: bool = True) -> WNConv1d:
        """A convolution that keeps the length."""
        padding = around((kernel_size - 1) * dilation, self.padding)
        options = {"kernel_size": kernel_size, "dilation": dilation, "padding": padding, "use_bias": bias}
        return WNConv1d(features, self.dtype, self.weight_norm, **options, name=name)

    def downsample(self, features: int, stride: int, name: str) -> WNConv1d:
        """Return the layer `[B, T, C] -> [B, T / stride, features]`."""
        options = {"kernel_size": 2 * stride, "stride": stride, "padding": around_strided(stride, self.padding)}
        return WNConv1d(features, self.dtype, self.weight_norm, **options, name=name)

    def upsample(self, features: int, stride: int, name: str) -> WNConvTranspose1d:
        """Return the layer `[B, T, C] -> [B, T * stride, features]`."""
        options = {"stride": stride, "padding": around_strided(stride, self.padding)[::-1]}
        return WNConvTranspose1d(features, self.dtype, self.weight_norm, **options, name=name)

    def activation(self, name: str) -> nn.Module:
        """The activation."""
        return ACTIVATIONS[self.activation_name](self.dtype, name=name)


class ResidualUnit(nn.Module):
    """`x + conv1(activation(conv_dilated(activation(x))))` on `[B, T, C]`."""

    architecture: Architecture
    dilation: int

    @nn.compact
    def __call__(self, x):
        layers, width = self.architecture, x.shape[-1]
        y = layers.conv(width, layers.kernel_size, "conv1", dilation=self.dilation)(layers.activation("snake1")(x))
        return x + layers.conv(width, 1, "conv2")(layers.activation("snake2")(y))


class EncoderBlock(nn.Module):
    """A residual unit per dilation, then a downsampling by `stride`.

    It maps `[B, T, C]` to `[B, T / stride, features]`. With a `span`, everything beyond the signal's ends stays zero.
    The same applies to the modules below.
    """

    architecture: Architecture
    features: int
    stride: int

    @nn.compact
    def __call__(self, x, span: Span | None = None):
        layers = self.architecture
        for i, dilation in enumerate(layers.dilations):
            x = clear_outside(ResidualUnit(layers, dilation, name=f"res_units_{i}")(x), span)
        x = layers.downsample(self.features, self.stride, "downsample")(layers.activation("snake")(x))
        return clear_outside(x, span and span.down(self.stride, layers.padding))


class DecoderBlock(nn.Module):
    """An upsampling by `stride`, then a residual unit per dilation.

    It maps `[B, T, C]` to `[B, T * stride, features]`.
    """

    architecture: Architecture
    features: int
    stride: int

    @nn.compact
    def __call__(self, x, span: Span | None = None):
        layers = self.architecture
        x = layers.upsample(self.features, self.stride, "upsample")(layers.activation("snake")(x))
        span = span and span.up(self.stride, layers.padding)
        x = clear_outside(x, span)
        for i, dilation in enumerate(layers.dilations):
            x = clear_outside(ResidualUnit(layers, dilation, name=f"res_units_{i}")(x), span)
        return x


class Encoder(nn.Module):
    """The encoder: audio `[B, T, C]` to the posterior's `[B, frames, features]`."""

    architecture: Architecture
    features: int
    bottleneck_channels: int | None = None

    @nn.compact
    def __call__(self, x, span: Span | None = None):
        layers = self.architecture
        x = clear_outside(layers.conv(layers.base_channels, 7, "input_conv")(x), span)
        block_class = nn.remat(EncoderBlock) if layers.remat else EncoderBlock
        for i, (mult, stride) in enumerate(zip(layers.channel_mults, layers.strides, strict=True)):
            x = block_class(layers, layers.base_channels * mult, stride, name=f"blocks_{i}")(x, span)
            span = span and span.down(stride, layers.padding)
        x = layers.conv(self.bottleneck_channels or self.features, 3, "final_conv")(layers.activation("final_snake")(x))
        return layers.conv(self.features, 1, "projection")(x) if self.bottleneck_channels else x


class Decoder(nn.Module):
    """The decoder: `[B, frames, latent_dim]` to audio `[B, T, out_channels]`."""

    architecture: Architecture
    out_channels: int
    final_bias: bool = True
    final_tanh: bool = False
    bottleneck_channels: int | None = None

    @nn.compact
    def __call__(self, x, span: Span | None = None):
        layers = self.architecture
        if self.bottleneck_channels:
            x = layers.conv(self.bottleneck_channels, 1, "projection")(x)
        first, *widths = [layers.base_channels * mult for mult in (*reversed(layers.channel_mults), 1)]
        x = clear_outside(layers.conv(first, 7, "input_conv")(clear_outside(x, span)), span)
        block_class = nn.remat(DecoderBlock) if layers.remat else DecoderBlock
        for i, (width, stride) in enumerate(zip(widths, reversed(layers.strides), strict=True)):
            x = block_class(layers, width, stride, name=f"blocks_{i}")(x, span)
            span = span and span.up(stride, layers.padding)
        x = layers.conv(self.out_channels, 7, "final_conv", bias=self.final_bias)(layers.activation("final_snake")(x))
        return jnp.tanh(x.astype(jnp.float32)) if self.final_tanh else x


class AudioVAE(nn.Module):
    """A convolutional variational autoencoder of audio.

    Attributes:
      in_channels: audio channels.
      base_channels: width of the first and last block.
      channel_mults: width of each block, as a multiple of `base_channels`.
      strides: downsampling of each block; their product is the hop length in samples.
      latent_dim: channels of the latent.
      kernel_size: of the residual units' dilated convolutions.
      dilations: of the residual units of each block.
      activation: "snake", "snake_beta" or "elu", see `layers`.
      posterior: "logvar", "softplus" or "none", see `posterior`.
      padding: "floor", "ceil" or "causal". The first two pad both sides of every convolution. Strided ones pad half
        their stride, rounded as the name says. With "ceil" and odd strides, decoded audio is shorter than
        `frames * hop_length`. With "floor", it is longer. "causal" pads only the past, so that live audio has a latency
        of one hop.
      final_bias: whether the decoder's last convolution has a bias.
      final_tanh: whether the decoded audio is the last convolution's tanh.
      decoder_base_channels: `base_channels` of the decoder; None for the encoder's.
      bottleneck_channels: width of the encoder's output and the decoder's input. Convolutions of one tap project it to
        and from the latent. None omits these convolutions.
      encoder_frozen: if True, the encoder gets no gradient, optimizer state or weight decay.
      dtype: of the convolutions, "float32" or "bfloat16". Parameters, latents and the returned audio are float32.
      weight_norm: if False, kernels have weight norm folded in, for inference.
      remat: if True, training keeps only activations between blocks, and recomputes the rest for the gradient.

    Variables: `params`, and `latent_statistics` with `latent_mean` and `latent_std` of shape `[latent_dim]`. The
    statistics are set from data, not trained. They start at 0 and 1.
    """

    in_channels: int = 2
    base_channels: int = 64
    channel_mults: tuple[int, ...] = (1, 2, 4, 8)
    strides: tuple[int, ...] = (2, 4, 8, 8)
    latent_dim: int = 64
    kernel_size: int = 7
    dilations: tuple[int, ...] = (1, 3, 9)
    activation: str = "snake"
    posterior: str = "logvar"
    padding: str = "floor"
    final_bias: bool = True
    final_tanh: bool = False
    decoder_base_channels: int | None = None
    bottleneck_channels: int | None = None
    encoder_frozen: bool = False
    dtype: Dtype = jnp.float32
    weight_norm: bool = True
    remat: bool = False

    def __post_init__(self):
        for name in ("channel_mults", "strides", "dilations"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "dtype", normalized_dtype(self.dtype))
        self._check()
        super().__post_init__()

    def _check(self):
        if len(self.channel_mults) != len(self.strides):
            raise ValueError(
                f"channel_mults has {len(self.channel_mults)} entries and strides {len(self.strides)}; "
                "give both one entry per block"
            )
        for name in (*SIZE_KEYS[:-1], "decoder_base_channels", "bottleneck_channels"):
            value = getattr(self, name)
            if value is None and name in KIND_KEYS:
                continue
            values = value if isinstance(value, tuple) else (value,)
            if not values or any(not isinstance(v, int) or v < 1 for v in values):
                raise ValueError(f"{name}={value!r} must be positive whole numbers")
        for dilation in self.dilations:
            if self.padding != "causal" and (self.kernel_size - 1) * dilation % 2:
                raise ValueError(
                    f"kernel_size={self.kernel_size} with dilation {dilation} cannot keep the length; "
                    "use an odd kernel_size"
                )
        choices = {"activation": ACTIVATIONS, "posterior": POSTERIORS, "padding": PADDINGS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose from {', '.join(known)}")

    @property
    def hop_length(self) -> int:
        """Samples per latent frame."""
        return math.prod(self.strides)

    def frames(self, length: int) -> int:
        """Return the number of latent frames that `length` samples encode to.

        For even strides, this is `length / hop_length`.
        """
        for stride in self.strides:
            length = downsampled(length, stride, self.padding)
        return length

    def decoded_length(self, frames: int) -> int:
        """Return the number of samples that `frames` latent frames decode to.

        For even strides, this is `frames * hop_length`.
        """
        for stride in reversed(self.strides):
            frames = upsampled(frames, stride, self.padding)
        return frames

    @property
    def min_length(self) -> int:
        """The fewest samples that encode to a latent frame.

        For even strides, this is `hop_length`.
        """
        return max(1, self.decoded_length(1))  # the transposed convolutions undo the lengths exactly

    def shapes(self) -> dict:
        """The shapes of the model's variables, without computing them."""
        return jax.tree.map(lambda shape: shape, _shapes(self))  # the caller may change its dictionaries

    def folded(self, variables: dict) -> tuple["AudioVAE", dict]:
        """Return the model and its variables with folded weight norm, for inference."""
        if not self.weight_norm:
            return self, variables
        folded = {}
        flat = flax.traverse_util.flatten_dict(variables["params"])
        for path, array in flat.items():
            if path[-1] == "v":
                # A transposed convolution's norm is over all axes but the input's, see `WNConvTranspose1d`.
                axis = -2 if path[-2] == "upsample" else -1
                folded[(*path[:-1], "kernel")] = fold_weight_norm(flat[(*path[:-1], "g")], array, axis)
            elif path[-1] != "g":
                folded[path] = array
        params = flax.traverse_util.unflatten_dict(folded)
        return self.clone(weight_norm=False), {**variables, "params": params}

    def setup(self):
        architecture = Architecture(
            self.base_channels,
            self.channel_mults,
            self.strides,
            self.kernel_size,
            self.dilations,
            self.activation,
            self.padding,
            self.dtype,
            self.weight_norm,
            self.remat,
        )
        features = parameters_per_latent(self.posterior) * self.latent_dim
        self.encoder = Encoder(architecture, features, self.bottleneck_channels)
        if self.decoder_base_channels is not None:
            architecture = dataclasses.replace(architecture, base_channels=self.decoder_base_channels)
        self.decoder = Decoder(
            architecture, self.in_channels, self.final_bias, self.final_tanh, self.bottleneck_channels
        )
        shape = (self.latent_dim,)
        self.latent_mean = self.variable("latent_statistics", "latent_mean", jnp.zeros, shape)
        self.latent_std = self.variable("latent_statistics", "latent_std", jnp.ones, shape)

    def __call__(self, audio, deterministic: bool = False, noise=None, latent_noise: float = 0.0) -> Reconstruction:
        """Encode and decode.

        Args:
          audio: `[B, T, C]`.
          deterministic: use the posterior's mean instead of a sample.
          noise: standard normal `[B, frames, latent_dim]` to sample with. By default it is drawn from the rng stream
            `sample`.
          latent_noise: standard deviation of more noise on the sample, in units of the mean, which makes the decoder
            robust. `mean` and `logvar` are without it.

        Returns:
          `(reconstruction, z, mean, logvar)`; the reconstruction has the input's length.

        Raises:
          ValueError: the audio is not `[B, T, in_channels]`, or is too short.
        """
        posterior = self.encode(audio, deterministic, noise, latent_noise=latent_noise)
        length = audio.shape[1]
        reconstruction = self.decode(posterior.z)[:, :length]
        missing = length - reconstruction.shape[1]
        reconstruction = jnp.pad(reconstruction, ((0, 0), (0, missing), (0, 0)))
        return Reconstruction(reconstruction, *posterior)

    def encode(
        self, audio, deterministic: bool = False, noise=None, span: Span | None = None, latent_noise: float = 0.0
    ) -> Posterior:
        """Encode `audio: [B, T, C]` to `(z, mean, logvar)`.

        Arguments and errors are those of `__call__`. With a `span` the audio is a window of a longer signal. It starts
        at a multiple of the hop, and is zero beyond the signal's ends.
        """
        if audio.ndim != 3 or audio.shape[-1] != self.in_channels:
            raise ValueError(f"audio must be [B, T, {self.in_channels}], not {tuple(audio.shape)}")
        if self.frames(audio.shape[1]) < 1:
            raise ValueError(
                f"{audio.shape[1]} samples are too short to encode; pad them to min_length={self.min_length} or more"
            )
        return self.sample(self.encoder(audio, span), deterministic, noise, latent_noise)

    def sample(self, parameters, deterministic: bool = False, noise=None, latent_noise: float = 0.0) -> Posterior:
        """Return `(z, mean, logvar)` of the encoder's output; see `__call__`."""
        parameters = parameters.astype(jnp.float32)
        if self.encoder_frozen:
            parameters = jax.lax.stop_gradient(parameters)
        mean, logvar, std = POSTERIORS[self.posterior](parameters)
        sample = mean
        if latent_noise:
            std = jnp.sqrt(jnp.square(std) + latent_noise**2)  # standard deviation of the sum of both noises
        if not deterministic and (self.posterior != "none" or latent_noise):
            if noise is None:
                noise = jax.random.normal(self.make_rng("sample"), mean.shape)
            sample = mean + noise * std
        z = (sample - self.latent_mean.value) / (self.latent_std.value + _STD_FLOOR)
        return Posterior(z, mean, logvar)

    def decode(self, z, span: Span | None = None):
        """Decode calibrated latents `[B, frames, latent_dim]` to audio `[B, T, C]`.

        `T` is `decoded_length(frames)`, about `frames * hop_length`. With a `span`, in frames, the latents are a window
        of a longer sequence.

        Raises:
          ValueError: the latents have another shape.
        """
        if z.ndim != 3 or z.shape[-1] != self.latent_dim:
            raise ValueError(f"z must be [B, frames, {self.latent_dim}], not {tuple(z.shape)}")
        return self.decoder(self.uncalibrated(z), span).astype(jnp.float32)

    def uncalibrated(self, z):
        """Convert calibrated latents to samples of the posterior."""
        return z * (self.latent_std.value + _STD_FLOOR) + self.latent_mean.value


def kind_of(model: AudioVAE) -> dict:
    """The arguments of `KIND_KEYS` that differ from their defaults."""
    return {key: value for key in KIND_KEYS if (value := getattr(model, key)) != getattr(AudioVAE, key)}


@functools.lru_cache(maxsize=16)  # tracing takes up to a second, and reading a model needs its shapes several times
def _shapes(model):
    key = jax.eval_shape(lambda: jax.random.key(0))
    audio = jax.ShapeDtypeStruct((1, model.min_length, model.in_channels), jnp.float32)
    return jax.eval_shape(lambda key, audio: model.init(key, audio, deterministic=True), key, audio)
