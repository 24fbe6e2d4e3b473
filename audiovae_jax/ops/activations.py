"""Activations as functions: Snake, SnakeBeta and leaky ReLU.

Snake computes a cheap sine, and stores one array for its gradient.

XLA's sine is exact over the whole range of floats, which costs more than the adjacent convolution. Snake needs only
`sin(u)^2` and `sin(2u)`, which have period pi. They are computed from the nearest multiple of pi, subtracted in three
parts for float32 accuracy, and two short polynomials.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from audiovae_jax.ops.column_sum import column_sum

_EPS = 1e-8
_EPS_BETA = 1e-9
# pi as a sum of three. The first two have few bits, so that their multiples are exact for |u| < 10,000.
# Beyond that, the error is about that of rounding u.
_PI = tuple(np.float32(part) for part in (3.140625, 9.67502593994140625e-4, 1.50995794e-7))
# Least-squares fits in r^2 on [-pi/2, pi/2] of sin(r) / r - 1 and cos(r) - 1.
_SIN = (-1.6666667e-01, 8.3333310e-03, -1.9840889e-04, 2.7526401e-06, -2.3905667e-08)
_COS = (-5.0000000e-01, 4.1666668e-02, -1.3888885e-03, 2.4801064e-05, -2.7525459e-07, 1.9917179e-09)


@jax.custom_vjp
def snake(x, alpha):
    """`x + sin(alpha * x)^2 / (alpha + 1e-8)` in float32 (Ziyin et al., 2020).

    Args:
      x: `[..., C]` of any floating dtype.
      alpha: `[C]` float32.

    Returns:
      `[..., C]` of x's dtype. For float32 products `alpha * x` below 1e4, the error of the squared sine is at most
      4e-7. For larger ones, it is the error of rounding the product. If float32 cannot represent the phase, the
      squared sine is an arbitrary number from 0 to 1.

    Only reverse mode can differentiate it.
    """
    return _forward(x, alpha, 1 / (alpha + _EPS))


@jax.custom_vjp
def snake_beta(x, alpha, beta):
    """`x + sin(alpha * x)^2 / (beta + 1e-9)` in float32 (Lee et al., 2022).

    Args:
      x: `[..., C]` of any floating dtype.
      alpha, beta: `[C]` float32.

    Returns:
      `[..., C]` of x's dtype.

    Only reverse mode can differentiate it.
    """
    return _forward(x, alpha, 1 / (beta + _EPS_BETA))


def _forward(x, alpha, inverse):
    u = x.astype(jnp.float32)
    s, _ = _sin_cos(_reduced(alpha * u))
    return (u + s * s * inverse).astype(x.dtype)


def _recomputed(x, alpha, g):
    """Return `x`, the cotangent, and sine and cosine of `alpha * x`.

    Each is `[rows, C]` in float32.
    """
    shape = x.shape
    # Reshaped and tied to the cotangent. Otherwise XLA computes parts of this in the forward pass's loop over x, and
    # keeps them in float32 until they are needed.
    x, g = lax.optimization_barrier(x).reshape(-1, shape[-1]), g.astype(jnp.float32).reshape(-1, shape[-1])
    u = x.astype(jnp.float32) + 0 * g[0, 0]
    return u, g, *_sin_cos(_reduced(alpha * u))


def _snake_backward(residuals, g):
    x, alpha = residuals
    inverse = 1 / (alpha + _EPS)
    u, g, s, c = _recomputed(x, alpha, g)
    dx = g * (1 + alpha * inverse * (2 * s * c))
    # Written as u * (2 * s * c) - s * s * inverse, XLA for GPUs would compute and store only the sine.
    dalpha = column_sum(g * s * (2 * u * c - s * inverse) * inverse)
    return dx.astype(x.dtype).reshape(x.shape), dalpha


def _snake_beta_backward(residuals, g):
    x, alpha, beta = residuals
    inverse = 1 / (beta + _EPS_BETA)
    u, g, s, c = _recomputed(x, alpha, g)
    dx = g * (1 + alpha * inverse * (2 * s * c))
    dalpha = column_sum(g * s * (2 * u * c)) * inverse
    dbeta = -column_sum(g * s * s) * jnp.square(inverse)
    return dx.astype(x.dtype).reshape(x.shape), dalpha, dbeta


snake.defvjp(lambda x, alpha: (snake(x, alpha), (x, alpha)), _snake_backward)
snake_beta.defvjp(lambda x, alpha, beta: (snake_beta(x, alpha, beta), (x, alpha, beta)), _snake_beta_backward)


def _reduced(u):
    """Return `u` minus the nearest multiple of pi."""
    n = jnp.round(u * np.float32(1 / np.pi))
    for part in _PI:
        u = u - n * part
    return jnp.clip(u, -np.pi / 2, np.pi / 2)  # n is inexact if u is huge


def _sin_cos(r):
    """Return `(sin(r), cos(r))` for `|r| <= pi / 2`."""
    r2 = r * r
    return r + r * (r2 * _polynomial(_SIN, r2)), 1 + r2 * _polynomial(_COS, r2)


def _polynomial(coefficients, x):
    *rest, value = coefficients
    value = jnp.full_like(x, value)
    for coefficient in reversed(rest):
        value = value * x + np.float32(coefficient)
    return value


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def leaky_relu(x, slope: float):
    """`x` where it is positive, `slope * x` elsewhere (Maas et al., 2013).

    The slope is above 0. Only reverse mode can differentiate it.
    """
    return jnp.where(x >= 0, x, slope * x)


def _leaky_relu_forward(x, slope):
    y = leaky_relu(x, slope)
    return y, y


def _leaky_relu_backward(slope, y, g):
    # A separate zero. XLA would merge it with the forward pass's zero, and store that one as a full-size array.
    zero = lax.optimization_barrier(jnp.zeros((), y.dtype))
    return (jnp.where(y >= zero, g, slope * g),)


leaky_relu.defvjp(_leaky_relu_forward, _leaky_relu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def known_leaky_relu(x, y, slope: float):
    """Return `y`, the known result of `leaky_relu(x, slope)`.

    Only the gradient of x is computed.
    """
    return y


def _known_leaky_relu_forward(x, y, slope):
    return y, y


def _known_leaky_relu_backward(slope, y, g):
    return *_leaky_relu_backward(slope, y, g), None


known_leaky_relu.defvjp(_known_leaky_relu_forward, _known_leaky_relu_backward)
