"""The audio VAE: ResidualUnit -> EncoderBlock, DecoderBlock -> Encoder, Decoder -> AudioVAE.

The convolutional autoencoder of SoundStream (Zeghidour et al., 2021) and DAC (Kumar et al., 2023),
with a Gaussian latent instead of their quantiser. Audio is `[B, T, C]` in -1..1.
"""

import dataclasses
import math
from typing import NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from audiovae_jax.models.layers import Dtype, Snake, WNConv1d, WNConvTranspose1d, fold_weight_norm, normalized_dtype
from audiovae_jax.models.span import Span, clear_outside
from audiovae_jax.ops import convolution

# The arguments that define the architecture, in the order of a torch file's `model_config`.
CONFIG_KEYS = (
    *("in_channels", "base_channels", "channel_mults", "strides"),
    *("latent_dim", "kernel_size", "dilations"),
)
LOGVAR_RANGE = (-20.0, 20.0)
_STD_FLOOR = 1e-8


class Posterior(NamedTuple):
    """The encoder's output: a sample and its Gaussian, each `[B, frames, latent_dim]`.

    `z` is calibrated: `(sample - latent_mean) / (latent_std + 1e-8)`. `mean` and `logvar` are not.
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
    """The arguments of `AudioVAE` that encoder and decoder share, and the layers that follow from them."""

    base_channels: int
    channel_mults: tuple[int, ...]
    strides: tuple[int, ...]
    kernel_size: int
    dilations: tuple[int, ...]
    dtype: Dtype
    weight_norm: bool
    remat: bool

    def conv(self, features: int, kernel_size: int, name: str, *, dilation: int = 1) -> WNConv1d:
        """A convolution that keeps the length."""
        padding = (kernel_size - 1) * dilation // 2
        return WNConv1d(
            features, self.dtype, self.weight_norm, kernel_size, dilation=dilation, padding=padding, name=name
        )

    def downsample(self, features: int, stride: int, name: str) -> WNConv1d:
        """`[B, T, C] -> [B, T / stride, features]`."""
        return WNConv1d(features, self.dtype, self.weight_norm, 2 * stride, stride, padding=stride // 2, name=name)

    def upsample(self, features: int, stride: int, name: str) -> WNConvTranspose1d:
        """`[B, T, C] -> [B, T * stride, features]`."""
        return WNConvTranspose1d(features, self.dtype, self.weight_norm, stride, name=name)

    def snake(self, name: str) -> Snake:
        """The activation."""
        return Snake(self.dtype, name=name)


class ResidualUnit(nn.Module):
    """`x + conv1(snake(conv_dilated(snake(x))))` on `[B, T, C]`."""

    architecture: Architecture
    dilation: int

    @nn.compact
    def __call__(self, x):
        layers, width = self.architecture, x.shape[-1]
        y = layers.conv(width, layers.kernel_size, "conv1", dilation=self.dilation)(layers.snake("snake1")(x))
        return x + layers.conv(width, 1, "conv2")(layers.snake("snake2")(y))


class EncoderBlock(nn.Module):
    """A residual unit per dilation, then a downsampling by `stride`: `[B, T, C] -> [B, T / stride, features]`.

    With a `span`, everything beyond the signal's ends stays zero. The same applies to the modules below.
    """

    architecture: Architecture
    features: int
    stride: int

    @nn.compact
    def __call__(self, x, span: Span | None = None):
        layers = self.architecture
        for i, dilation in enumerate(layers.dilations):
            x = clear_outside(ResidualUnit(layers, dilation, name=f"res_units_{i}")(x), span)
        x = layers.downsample(self.features, self.stride, "downsample")(layers.snake("snake")(x))
        return clear_outside(x, span and span.down(self.stride))


class DecoderBlock(nn.Module):
    """An upsampling by `stride`, then a residual unit per dilation: `[B, T, C] -> [B, T * stride, features]`."""

    architecture: Architecture
    features: int
    stride: int

    @nn.compact
    def __call__(self, x, span: Span | None = None):
        layers = self.architecture
        x = layers.upsample(self.features, self.stride, "upsample")(layers.snake("snake")(x))
        span = span and span.up(self.stride)
        x = clear_outside(x, span)
        for i, dilation in enumerate(layers.dilations):
            x = clear_outside(ResidualUnit(layers, dilation, name=f"res_units_{i}")(x), span)
        return x


class Encoder(nn.Module):
    """`[B, T, C]` audio to `[B, frames, 2 * latent_dim]`: mean and log-variance."""

    architecture: Architecture
    latent_dim: int

    @nn.compact
    def __call__(self, x, span: Span | None = None):
        layers = self.architecture
        x = clear_outside(layers.conv(layers.base_channels, 7, "input_conv")(x), span)
        block_class = nn.remat(EncoderBlock) if layers.remat else EncoderBlock
        for i, (mult, stride) in enumerate(zip(layers.channel_mults, layers.strides, strict=True)):
            x = block_class(layers, layers.base_channels * mult, stride, name=f"blocks_{i}")(x, span)
            span = span and span.down(stride)
        return layers.conv(2 * self.latent_dim, 3, "final_conv")(layers.snake("final_snake")(x))


class Decoder(nn.Module):
    """`[B, frames, latent_dim]` to `[B, T, out_channels]` audio."""

    architecture: Architecture
    out_channels: int

    @nn.compact
    def __call__(self, x, span: Span | None = None):
        layers = self.architecture
        first, *widths = [layers.base_channels * mult for mult in (*reversed(layers.channel_mults), 1)]
        x = clear_outside(layers.conv(first, 7, "input_conv")(clear_outside(x, span)), span)
        block_class = nn.remat(DecoderBlock) if layers.remat else DecoderBlock
        for i, (width, stride) in enumerate(zip(widths, reversed(layers.strides), strict=True)):
            x = block_class(layers, width, stride, name=f"blocks_{i}")(x, span)
            span = span and span.up(stride)
        return layers.conv(self.out_channels, 7, "final_conv")(layers.snake("final_snake")(x))


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
        for name in ("in_channels", "base_channels", "latent_dim", "kernel_size", "channel_mults", "strides"):
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,)
            if not values or any(not isinstance(v, int) or v < 1 for v in values):
                raise ValueError(f"{name}={value!r} must be positive whole numbers")
        for dilation in self.dilations:
            if (self.kernel_size - 1) * dilation % 2:
                raise ValueError(
                    f"kernel_size={self.kernel_size} with dilation {dilation} cannot keep the length; "
                    "use an odd kernel_size"
                )

    @property
    def hop_length(self) -> int:
        """Samples per latent frame."""
        return math.prod(self.strides)

    def frames(self, length: int) -> int:
        """The number of latent frames that `length` samples encode to (`length / hop_length` for even strides)."""
        for stride in self.strides:
            length = convolution.conv_length(length, 2 * stride, stride=stride, padding=stride // 2)
        return length

    def decoded_length(self, frames: int) -> int:
        """The number of samples that `frames` latent frames decode to (`frames * hop_length` for even strides)."""
        for stride in reversed(self.strides):
            frames = frames * stride + stride % 2
        return frames

    @property
    def min_length(self) -> int:
        """The fewest samples that encode to a latent frame: at least `hop_length`, more for odd strides."""
        return self.decoded_length(1)  # the transposed convolutions undo the lengths exactly

    def shapes(self) -> dict:
        """The shapes of the model's variables, without computing them."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        audio = jax.ShapeDtypeStruct((1, self.min_length, self.in_channels), jnp.float32)
        return jax.eval_shape(lambda key, audio: self.init(key, audio, deterministic=True), key, audio)

    def folded(self, variables: dict) -> tuple["AudioVAE", dict]:
        """The same model with weight norm folded into its kernels, and its variables: for inference."""
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
            self.dtype,
            self.weight_norm,
            self.remat,
        )
        self.encoder = Encoder(architecture, self.latent_dim)
        self.decoder = Decoder(architecture, self.in_channels)
        shape = (self.latent_dim,)
        self.latent_mean = self.variable("latent_statistics", "latent_mean", jnp.zeros, shape)
        self.latent_std = self.variable("latent_statistics", "latent_std", jnp.ones, shape)

    def __call__(self, audio, deterministic: bool = False, noise=None) -> Reconstruction:
        """Encode and decode.

        Args:
          audio: `[B, T, C]`.
          deterministic: use the posterior's mean instead of a sample.
          noise: standard normal `[B, frames, latent_dim]` to sample with. By default it is drawn from the rng stream
            `sample`.

        Returns:
          `(reconstruction, z, mean, logvar)`; the reconstruction has the input's length.

        Raises:
          ValueError: the audio is not `[B, T, in_channels]`, or is too short.
        """
        posterior = self.encode(audio, deterministic, noise)
        length = audio.shape[1]
        reconstruction = self.decode(posterior.z)[:, :length]
        missing = length - reconstruction.shape[1]
        reconstruction = jnp.pad(reconstruction, ((0, 0), (0, missing), (0, 0)))
        return Reconstruction(reconstruction, *posterior)

    def encode(self, audio, deterministic: bool = False, noise=None, span: Span | None = None) -> Posterior:
        """`audio: [B, T, C]` to `(z, mean, logvar)`; arguments and errors as in `__call__`.

        With a `span` the audio is a window of a longer signal. It starts at a multiple of the hop, and is zero beyond
        the signal's ends.
        """
        if audio.ndim != 3 or audio.shape[-1] != self.in_channels:
            raise ValueError(f"audio must be [B, T, {self.in_channels}], not {tuple(audio.shape)}")
        if self.frames(audio.shape[1]) < 1:
            raise ValueError(
                f"{audio.shape[1]} samples are too short to encode; pad them to min_length={self.min_length} or more"
            )
        mean, logvar = jnp.split(self.encoder(audio, span).astype(jnp.float32), 2, axis=-1)
        if self.encoder_frozen:
            mean, logvar = jax.lax.stop_gradient((mean, logvar))
        logvar = jnp.clip(logvar, *LOGVAR_RANGE)
        sample = mean
        if not deterministic:
            if noise is None:
                noise = jax.random.normal(self.make_rng("sample"), mean.shape)
            sample = mean + noise * jnp.exp(logvar / 2)
        z = (sample - self.latent_mean.value) / (self.latent_std.value + _STD_FLOOR)
        return Posterior(z, mean, logvar)

    def decode(self, z, span: Span | None = None):
        """Calibrated latents `[B, frames, latent_dim]` to audio `[B, about frames * hop_length, C]`.

        With a `span`, in frames, the latents are a window of a longer sequence.

        Raises:
          ValueError: the latents have another shape.
        """
        if z.ndim != 3 or z.shape[-1] != self.latent_dim:
            raise ValueError(f"z must be [B, frames, {self.latent_dim}], not {tuple(z.shape)}")
        z = z * (self.latent_std.value + _STD_FLOOR) + self.latent_mean.value
        return self.decoder(z, span).astype(jnp.float32)
