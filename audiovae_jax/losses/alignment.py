"""Alignment of latents with a frozen teacher (VA-VAE, arXiv 2501.01423).

Latents that follow a teacher's features are easier to generate. The paper uses margins of 0.5 for `marginal_cosine`
and 0.25 for `distance_matrix`, so that only latents that are far from the teacher have a gradient.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from audiovae_jax.errors import require_range

_EPS = 1e-6  # lower bound of a vector's norm
# Samples of an operand of a callback on CPUs. jax copies larger ones in a thread of its pool, and as many devices as
# cores occupy all threads while they wait for the callback.
_PIECE = 25_000


def align_frames(features, frames: int):
    """Interpolate features to another number of frames that spans the same time.

    The interpolation between frame centers is linear, and constant beyond the outer ones. It is that of torch's
    `interpolate(mode="linear", align_corners=False)`.

    Args:
      features: `[B, n, D]`.
      frames: the number of frames to return.

    Returns:
      `[B, frames, D]` float32.
    """
    features = features.astype(jnp.float32)
    shape = (features.shape[0], frames, features.shape[2])
    return features if features.shape == shape else jax.image.resize(features, shape, "linear", antialias=False)


def marginal_cosine(projected, teacher, margin: float = 0.5):
    """Return the mean of `relu(1 - margin - cos(projected, teacher))` over frames.

    Args:
      projected: latents `[B, frames, D]`, projected to the teacher's size by a learned linear map.
      teacher: features `[B, n, D]` of the same audio. They are interpolated to `frames`, and have no gradient.
      margin: cosine distance up to which a frame counts as aligned.

    Returns:
      A float32 scalar from 0 to `2 - margin`.

    Raises:
      ValueError: the batches or sizes differ.
    """
    _require_same_batch(projected, teacher)
    if projected.shape[2] != teacher.shape[2]:
        raise ValueError(
            f"projected has {projected.shape[2]} features and teacher {teacher.shape[2]}; project to these"
        )
    teacher = align_frames(lax.stop_gradient(teacher), projected.shape[1])
    cosine = jnp.sum(_unit(projected) * _unit(teacher), axis=-1)
    return jnp.mean(jax.nn.relu(1 - margin - cosine))


def distance_matrix(z, teacher, margin: float = 0.25):
    """Return the mean difference of similarities, above a margin.

    It is the mean of `relu(|cos(z_i, z_j) - cos(teacher_i, teacher_j)| - margin)` over pairs of frames of an item. Only
    similarities are compared, so no projection is needed. Memory grows with the square of `frames`.

    Args:
      z: latents `[B, frames, D]`.
      teacher: features `[B, n, E]` of the same audio. They are interpolated to `frames`, and have no gradient.
      margin: difference of two similarities that is not penalised.

    Returns:
      A float32 scalar from 0 to `2 - margin`.

    Raises:
      ValueError: the batches differ.
    """
    _require_same_batch(z, teacher)
    teacher = align_frames(lax.stop_gradient(teacher), z.shape[1])
    return jnp.mean(jax.nn.relu(jnp.abs(_similarities(z) - _similarities(teacher)) - margin))


def _similarities(features):
    """Return the cosines `[B, n, n]` of all pairs of frames `[B, n, D]`."""
    unit = _unit(features)
    return jnp.einsum("bid,bjd->bij", unit, unit)


def _unit(features):
    """Scale vectors to a norm of 1.

    Vectors of zeros stay zeros, with a finite gradient.
    """
    features = features.astype(jnp.float32)
    squares = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    return features * lax.rsqrt(jnp.maximum(squares, _EPS**2))


def _require_same_batch(a, b):
    if a.ndim != 3 or b.ndim != 3 or a.shape[0] != b.shape[0]:
        raise ValueError(f"latents {a.shape} and features {b.shape} must be [B, frames, D] of the same batch")


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The weighted alignment term of the training objective, with its teacher.

    Attributes:
      teacher: `(audio, sample_rate) -> features`, which is not trained, see `takes_batches`. Features that are not
        finite make the loss not finite.
      sample_rate: of the audio in Hz.
      frames, size: shape of the teacher's features of one crop.
      weight: of the term.
      cosine_margin, distance_margin: see `marginal_cosine` and `distance_matrix`.
    """

    teacher: Callable
    sample_rate: int
    frames: int
    size: int
    weight: float = 0.1
    cosine_margin: float = 0.5
    distance_margin: float = 0.25

    def __post_init__(self):
        for name in ("weight", "cosine_margin", "distance_margin"):
            require_range(name, getattr(self, name))

    def init(self, key, latent_dim: int) -> dict:
        """Return the initial parameters of the projection from latents to features."""
        return {"kernel": nn.initializers.lecun_normal()(key, (latent_dim, self.size))}

    def features(self, audio):
        """Return the teacher's features of `audio: [B, T, C]`.

        They are `[B, frames, size]` float32, without a gradient.
        """
        if takes_batches(self.teacher):
            return lax.stop_gradient(self.teacher(audio, self.sample_rate).astype(jnp.float32))
        made = jax.ShapeDtypeStruct((audio.shape[0], self.frames, self.size), jnp.float32)
        call = functools.partial(_on_host, self.teacher, self.sample_rate, audio.shape, made.shape)
        flat = audio.astype(jnp.float32).reshape(-1)
        pieces = list(range(_PIECE, flat.size, _PIECE)) if jax.default_backend() == "cpu" else []
        return jax.pure_callback(call, made, *jnp.split(flat, pieces))

    def __call__(self, z, features, params):
        """Return the unweighted term: the sum of both losses.

        Args:
          z: latents `[B, n, latent_dim]`.
          features: see `features`.
          params: see `init`.
        """
        projected = z.astype(jnp.float32) @ params["kernel"]
        cosine = marginal_cosine(projected, features, self.cosine_margin)
        return cosine + distance_matrix(z, features, self.distance_margin)


def takes_batches(teacher: Callable) -> bool:
    """Return whether a teacher is a JAX function of batches.

    Such a function maps `[B, T, C]` to `[B, frames, size]`, and has an attribute `takes_batches` that is True. Other
    teachers are called on the host, for one crop at a time: `[T, C]` float32 to `[frames, size]`, both numpy.
    """
    return bool(getattr(teacher, "takes_batches", False))


def _on_host(teacher, sample_rate, audio_shape, shape, *pieces):
    audio = np.concatenate(pieces).reshape(audio_shape)
    features = np.stack([np.asarray(teacher(crop, sample_rate), np.float32) for crop in audio])
    if features.shape != shape:
        raise ValueError(f"the teacher of config.alignment returned features {features.shape[1:]}, not {shape[1:]}")
    return features
