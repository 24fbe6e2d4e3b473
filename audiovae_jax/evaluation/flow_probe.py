"""A probe of latents: the loss of a small rectified-flow transformer.

Rectified flow (Liu et al., 2022, arXiv 2209.03003) interpolates `x = (1 - t) z + t noise`, and learns the velocity
`noise - z`. The latents are the posterior's means, standardised per channel by the training files. Without any context,
each element is independent standard normal, and the best prediction is `gain(t) x` with `gain(t) = (2 t - 1) / ((1 -
t)^2 + t^2)`. Its expected loss is `1 / ((1 - t)^2 + t^2)`, so pi / 2 over uniform t. The transformer learns a
correction to that prediction. So its loss starts at this value, and falls below if the latents have structure.

Neighbouring frames are grouped to tokens of about 20 ms. So models of any frame rate give the transformer about the
same number of tokens. A longer frame is one token.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from audiovae_jax.data.sets.catalog import Excerpt, Track
from audiovae_jax.errors import ConfigError, DataError, printable
from audiovae_jax.inference import track_stream
from audiovae_jax.inference.calibration import RunningMoments
from audiovae_jax.inference.codec import Codec

INDEPENDENT_LOSS = math.pi / 2  # expected loss without context
EXCERPT_SECONDS = 10.0  # from the middle of each track
TOKEN_SECONDS = 0.02
_BATCH, _VALIDATION_CROPS, _DRAWS = 8, 64, 16  # crops per step, and draws of noise for each validation crop
_LEARNING_RATE, _WARMUP, _CLIP_NORM = 1e-3, 0.1, 1.0  # peak, fraction of the steps, norm of the gradient
_MIN_STD = 1e-6  # a narrower channel is constant, and is not scaled
_CURVE = 10  # means of the training loss that are reported


class CropShape(NamedTuple):
    """The shape of a crop.

    Attributes:
      tokens, frames_per_token, latent_dim: their product is the number of elements.
    """

    tokens: int
    frames_per_token: int
    latent_dim: int

    @property
    def frames(self) -> int:
        """The number of latent frames."""
        return self.tokens * self.frames_per_token


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """The result of `probe`. Losses are per element of the standardised latents.

    Attributes:
      loss: validation loss.
      standard_error: of `loss`, over the draws of noise and t.
      independent_loss: loss without context for the same crops and draws.
      relative_loss: `loss / independent_loss`: 1 without structure, lower if context helps.
      relative_standard_error: of `relative_loss`, over the draws.
      training_losses: training loss relative to `INDEPENDENT_LOSS`, averaged over each tenth of the steps.
      steps, parameters: of the transformer.
      crop: its shape.
    """

    loss: float
    standard_error: float
    independent_loss: float
    relative_loss: float
    relative_standard_error: float
    training_losses: tuple[float, ...]
    steps: int
    parameters: int
    crop: CropShape


class FlowTransformer(nn.Module):
    """A transformer that predicts velocities, with adaptive layer norm.

    The architecture is that of DiT (Peebles and Xie, 2022, arXiv 2212.09748).

    Attributes:
      frames_per_token: frames that are one token.
      width, depth, heads: of the blocks. The default has 1.2 M parameters, and those of the first and last layer.
    """

    frames_per_token: int = 1
    width: int = 128
    depth: int = 4
    heads: int = 4

    @nn.compact
    def __call__(self, x, t):
        """Return the velocity `[B, frames, latent_dim]` at `x` and `t`.

        `x` has the shape of the velocity, and `t: [B]` is in 0 to 1.
        """
        time = nn.Dense(self.width)(nn.silu(nn.Dense(self.width)(_sinusoids(1000 * t, self.width))))[:, None]
        tokens = x.reshape(len(x), -1, self.frames_per_token * x.shape[2])
        h = nn.Dense(self.width)(tokens) + _sinusoids(jnp.arange(tokens.shape[1]), self.width)
        for _ in range(self.depth):
            shift, scale, gate = self._modulation(time, 3)
            h += gate * nn.MultiHeadDotProductAttention(self.heads)(_normed(h, shift, scale))
            shift, scale, gate = self._modulation(time, 3)
            h += gate * nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(_normed(h, shift, scale))))
        h = _normed(h, *self._modulation(time, 2))
        correction = nn.Dense(tokens.shape[-1], kernel_init=nn.initializers.zeros)(h)
        return _gain(t)[:, None, None] * x + correction.reshape(x.shape)

    def _modulation(self, time, count):
        return jnp.split(nn.Dense(count * self.width, kernel_init=nn.initializers.zeros)(nn.silu(time)), count, axis=-1)


def encode(
    codec: Codec, tracks: Iterable[Track], *, mix: bool = False, read_timeout: float = 0.0
) -> tuple[dict[str, list[np.ndarray]], list[tuple[str, str]]]:
    """Encode the middle of each track to the means of the posterior.

    Args:
      codec: the model.
      tracks: tracks, of which at most `EXCERPT_SECONDS` are read.
      mix: see `Codec.encode`.
      read_timeout: see `track_stream.open_track`.

    Returns:
      `(latents, skipped)`. The latents of each track's key are `[frames, latent_dim]` per lane. `skipped` has `(name,
      reason)` of each track that cannot be encoded.
    """
    found, skipped = {}, []
    for track in tracks:
        try:
            if not hasattr(track.audio, "read"):
                raise DataError("generated audio cannot be encoded; give files")
            frames = min(track.audio.frames, round(EXCERPT_SECONDS * track.audio.sample_rate))
            middle = Excerpt(track.audio, (track.audio.frames - frames) // 2, frames)
            posteriors = codec.stream(track_stream.open_track(middle, read_timeout), mix=mix).posteriors
            z = np.concatenate([np.asarray(posterior.z, np.float32) for posterior in posteriors])
            found[track.key] = list(np.moveaxis(z, 1, 0))
        except DataError as error:
            skipped.append((printable(track.key), str(error)))
    return found, skipped


def crop_shape(codec: Codec, seconds: float) -> CropShape:
    """Return the shape of a crop of about `seconds` of audio.

    Raises:
      ConfigError: there are fewer than two tokens.
    """
    rate = codec.sample_rate / codec.model.hop_length
    frames_per_token = max(1, round(TOKEN_SECONDS * rate))
    tokens = round(seconds * rate / frames_per_token)
    if tokens < 2:
        raise ConfigError(f"--seconds={seconds:g} is too short; use {2 * frames_per_token / rate:.2g} or more")
    return CropShape(tokens, frames_per_token, codec.model.latent_dim)


def probe(
    train: Sequence[np.ndarray],
    validation: Sequence[np.ndarray],
    *,
    crop: CropShape,
    steps: int,
    seed: int = 0,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> ProbeResult:
    """Train the transformer on latents, and measure its loss on others.

    The crops and draws of two models with equal numbers of excerpts differ only by the rounding to frames. The result
    is the same for the same arguments on one machine.

    Args:
      train, validation: latents `[n, latent_dim]` of each excerpt. Shorter ones than a crop are left out.
      crop: the shape of a crop.
      steps: training steps.
      seed: of the initial parameters, the crops and the noise.
      progress: iterates over the steps, and may show progress.

    Raises:
      DataError: no excerpt is as long as a crop.
    """
    sides, frames = {"train": train, "validation": validation}, crop.frames
    for name, excerpts in sides.items():
        sides[name] = [excerpt for excerpt in excerpts if len(excerpt) >= frames]
        if not sides[name]:
            raise DataError(f"no {name} file has {frames} latent frames; use a smaller --seconds, or longer files")
    moments = RunningMoments(crop.latent_dim)
    for excerpt in sides["train"]:
        moments.add(excerpt)
    mean, std = moments.mean, np.where(moments.std < _MIN_STD, 1.0, moments.std)
    train, validation = (
        [((excerpt - mean) / std).astype(np.float32) for excerpt in excerpts] for excerpts in sides.values()
    )

    model = FlowTransformer(crop.frames_per_token)
    warmup = max(1, round(_WARMUP * steps))
    rate = optax.warmup_cosine_decay_schedule(0.0, _LEARNING_RATE, warmup, max(steps, warmup + 1))
    optimizer = optax.chain(optax.clip_by_global_norm(_CLIP_NORM), optax.adam(rate))
    key, draws = jax.random.key(seed), np.random.default_rng(seed)
    params = jax.jit(model.init)(key, jnp.zeros((1, frames, crop.latent_dim)), jnp.zeros(1))
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, z, key):
        def loss(params):
            return jnp.mean(_losses(model, params, z, *_drawn(key, z))[0])

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    values = []
    for i in progress(range(steps)):
        params, state, value = step(params, state, _crops(train, frames, draws.random((_BATCH, 2))), _key(key, 1, i))
        values.append(value)
    own, independent = _validate(model, params, validation, frames, jax.random.key(0))
    tenths = np.array_split(jax.device_get(values), _CURVE)
    return ProbeResult(
        loss=float(own.mean()),
        standard_error=_standard_error(own),
        independent_loss=float(independent.mean()),
        relative_loss=float(own.mean() / independent.mean()),
        relative_standard_error=_standard_error(own / independent),
        training_losses=tuple(float(np.mean(tenth)) / INDEPENDENT_LOSS for tenth in tenths if len(tenth)),
        steps=steps,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        crop=crop,
    )


def _validate(model, params, excerpts, frames, key):
    """Return the loss of each draw and that without context, `[draws]` each.

    A draw covers all crops. The crops, noise and t do not depend on the seed of training.
    """
    places = (np.arange(_VALIDATION_CROPS) + 0.5) / _VALIDATION_CROPS
    # The golden ratio spreads the positions within files evenly too.
    crops = _crops(excerpts, frames, np.stack([places, np.arange(_VALIDATION_CROPS) * 0.6180339887 % 1], axis=1))

    @jax.jit
    def losses(params, z, noise, t):
        return _losses(model, params, z, noise, t)

    found = []
    for i in range(_DRAWS):
        noise, t = _drawn(_key(key, 0, i), crops)
        parts = [
            losses(params, crops[at : at + _BATCH], noise[at : at + _BATCH], t[at : at + _BATCH])
            for at in range(0, len(crops), _BATCH)
        ]
        found.append(np.concatenate(jax.device_get(parts), axis=1).mean(axis=1))
    return np.asarray(found, np.float64).T


def _losses(model, params, z, noise, t):
    """Return the loss of each crop, and that without context, `[B]` each."""
    x = (1 - t)[:, None, None] * z + t[:, None, None] * noise
    predictions = model.apply(params, x, t), _gain(t)[:, None, None] * x
    return tuple(jnp.mean(jnp.square(predicted - (noise - z)), axis=(1, 2)) for predicted in predictions)


def _drawn(key, z):
    """Return noise shaped like `z`, and a t per item, spread evenly over 0 to 1."""
    noise_key, offset_key, order_key = jax.random.split(key, 3)
    offsets = jax.random.uniform(offset_key, (len(z),))
    t = (jax.random.permutation(order_key, len(z)) + offsets) / len(z)
    return jax.random.normal(noise_key, z.shape), t


def _crops(excerpts, frames, places):
    """Cut crops `[n, frames, latent_dim]` at `places: [n, 2]`.

    The first number from 0 to 1 selects the excerpt, and the second the position in it.
    """
    chosen = [excerpts[int(place * len(excerpts))] for place in places[:, 0]]
    starts = [int(place * (len(z) - frames + 1)) for z, place in zip(chosen, places[:, 1], strict=True)]
    return np.stack([z[start : start + frames] for z, start in zip(chosen, starts, strict=True)])


def _gain(t):
    return (2 * t - 1) / (jnp.square(1 - t) + jnp.square(t))


def _sinusoids(positions, width):
    """Return sinusoidal features `[n, width]` of `positions: [n]`.

    These are sines and cosines (Vaswani et al., 2017).
    """
    frequencies = 10_000.0 ** (-jnp.arange(width // 2) / (width // 2))
    angles = positions[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _normed(h, shift, scale):
    return nn.LayerNorm(use_bias=False, use_scale=False)(h) * (1 + scale) + shift


def _key(key, purpose, index):
    return jax.random.fold_in(jax.random.fold_in(key, purpose), index)


def _standard_error(values):
    return float(values.std(ddof=1) / math.sqrt(len(values)))
