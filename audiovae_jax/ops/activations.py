"""Activations as functions: Snake, and the leaky ReLU of discriminators.

Snake has a cheap sine, and a gradient that keeps one array.

XLA's sine is exact over the whole range of floats, which costs more than the convolution beside it.
Snake needs `sin(u)^2` and `sin(2u)`, both of period pi: one subtraction of the nearest multiple of pi,
in three parts so that it is exact to float32, and two short polynomials give them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from audiovae_jax.ops.column_sum import column_sum

_EPS = 1e-8
# pi as a sum; the first two have so few bits that their multiples are exact while |u| is below 10,000.
# Beyond, the error is of the size of that of rounding u itself.
_PI = tuple(np.float32(part) for part in (3.140625, 9.67502593994140625e-4, 1.50995794e-7))
# Least squares on [-pi/2, pi/2] in r^2: sin(r) / r - 1 and cos(r) - 1.
_SIN = (-1.6666667e-01, 8.3333310e-03, -1.9840889e-04, 2.7526401e-06, -2.3905667e-08)
_COS = (-5.0000000e-01, 4.1666668e-02, -1.3888885e-03, 2.4801064e-05, -2.7525459e-07, 1.9917179e-09)


@jax.custom_vjp
def snake(x, alpha):
    """`x + sin(alpha * x)^2 / (alpha + 1e-8)` (Ziyin et al., 2020), computed in float32.

    Args:
      x: `[..., C]` of any floating dtype.
      alpha: `[C]` float32.

    Returns:
      `[..., C]` of x's dtype. The square of the sine is within 4e-7 of that of the float32 product
      `alpha * x` while that is below 1e4. Beyond, it is as far off as rounding that product may put it, and
      far beyond, where float32 has no phase left, some number from 0 to 1.

    Only reverse mode can differentiate it.
    """
    return _forward(x, alpha)


def _forward(x, alpha):
    u = x.astype(jnp.float32)
    s, _ = _sin_cos(_reduced(alpha * u))
    return (u + s * s * (1 / (alpha + _EPS))).astype(x.dtype)


def _forward_with_residuals(x, alpha):
    return _forward(x, alpha), (x, alpha)


def _backward(residuals, g):
    x, alpha = residuals
    shape = x.shape
    # As a matrix, and tied to the cotangent: XLA else computes parts of this with the forward pass, as one loop of
    # the same shape that reads x anyway, and keeps them in float32 until they are needed.
    x, g = lax.optimization_barrier(x).reshape(-1, shape[-1]), g.astype(jnp.float32).reshape(-1, shape[-1])
    u = x.astype(jnp.float32) + 0 * g[0, 0]
    inverse = 1 / (alpha + _EPS)
    s, c = _sin_cos(_reduced(alpha * u))
    dx = g * (1 + alpha * inverse * (2 * s * c))
    # Not u * (2 * s * c) - s * s * inverse, for which XLA computes the sine alone and keeps it, on GPUs.
    dalpha = column_sum(g * s * (2 * u * c - s * inverse) * inverse)
    return dx.astype(x.dtype).reshape(shape), dalpha


snake.defvjp(_forward_with_residuals, _backward)


def _reduced(u):
    """`u` less the nearest multiple of pi."""
    n = jnp.round(u * np.float32(1 / np.pi))
    for part in _PI:
        u = u - n * part
    return jnp.clip(u, -np.pi / 2, np.pi / 2)  # n itself is rounded where u is huge


def _sin_cos(r):
    """Both for `|r| <= pi / 2`."""
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
    """`x` where it is positive, `slope * x` elsewhere (Maas et al., 2013); the slope is above 0.

    Only reverse mode can differentiate it.
    """
    return jnp.where(x >= 0, x, slope * x)


def _leaky_relu_forward(x, slope):
    y = leaky_relu(x, slope)
    return y, y


def _leaky_relu_backward(slope, y, g):
    # A zero of its own: that of the forward pass is one instruction with it, and XLA keeps it as a whole array.
    zero = lax.optimization_barrier(jnp.zeros((), y.dtype))
    return (jnp.where(y >= zero, g, slope * g),)


leaky_relu.defvjp(_leaky_relu_forward, _leaky_relu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def known_leaky_relu(x, y, slope: float):
    """`leaky_relu(x, slope)` where it is known to be `y`: x is not computed, only its gradient."""
    return y


def _known_leaky_relu_forward(x, y, slope):
    return y, y


def _known_leaky_relu_backward(slope, y, g):
    return *_leaky_relu_backward(slope, y, g), None


known_leaky_relu.defvjp(_known_leaky_relu_forward, _known_leaky_relu_backward)
