"""The layers of all networks: activations and weight-normalised convolutions.

Parameters and weight norm are float32. Convolutions compute in `dtype`.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from audiovae_jax.ops import convolution
from audiovae_jax.ops.activations import snake, snake_beta
from audiovae_jax.ops.initializers import uniform

Dtype = Any


def normalized_dtype(dtype: Dtype) -> np.dtype:
    """Return `dtype` as a numpy dtype.

    Modules given "float32" and `jnp.float32` are then equal.

    Raises:
      ValueError: `dtype` is not the name of a dtype.
    """
    try:
        return jnp.dtype(dtype)
    except TypeError:
        raise ValueError(f"dtype={dtype!r} is not a dtype; use float32 or bfloat16") from None


class Snake(nn.Module):
    """`x + sin(alpha * x)^2 / (alpha + 1e-8)` (Ziyin et al., 2020).

    There is an alpha per channel.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        alpha = self.param("alpha", nn.initializers.ones, (x.shape[-1],))
        return snake(x, alpha).astype(self.dtype)


class SnakeBeta(nn.Module):
    """`x + sin(a * x)^2 / (b + 1e-9)` (Lee et al., 2022).

    There is an `a` and a `b` per channel, which are stored as logarithms.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        alpha = self.param("alpha", nn.initializers.zeros, (x.shape[-1],))
        beta = self.param("beta", nn.initializers.zeros, (x.shape[-1],))
        return snake_beta(x, jnp.exp(alpha), jnp.exp(beta)).astype(self.dtype)


class ELU(nn.Module):
    """`x` where it is positive, `exp(x) - 1` elsewhere (Clevert et al., 2016)."""

    dtype: Dtype = jnp.float32

    def __call__(self, x):
        return jax.nn.elu(x).astype(self.dtype)


ACTIVATIONS = {"snake": Snake, "snake_beta": SnakeBeta, "elu": ELU}


class _WeightNormed(nn.Module):
    """Weight norm `g * v / ||v||`, or the folded `kernel`.

    See Salimans and Kingma, 2016.
    """

    features: int
    dtype: Dtype = jnp.float32
    weight_norm: bool = True
    use_bias: bool = True

    def _parameters(self, shape, fan_in, norm_axis):
        """Return the kernel and bias in `dtype`.

        `norm_axis` is the kernel axis along which `g` lies.
        """
        bound = 1 / math.sqrt(fan_in)  # torch's default initialisation
        bias = self.param("bias", uniform, (self.features,), bound).astype(self.dtype) if self.use_bias else None
        if self.weight_norm:
            v = self.param("v", uniform, shape, bound)
            g = self.param("g", lambda _, v: _initial_gain(v, norm_axis), v)
            kernel = fold_weight_norm(g, v, norm_axis)
        else:
            kernel = self.param("kernel", uniform, shape, bound)
        return kernel.astype(self.dtype), bias


class WNConv1d(_WeightNormed):
    """Weight-normalised 1-D convolution of `[..., T, C]`.

    The input is zero-padded by `padding`, one number for both sides or one for each. Params: `v: [kernel_size, C /
    groups, features]`, `g: [features]`, `bias: [features]`.
    """

    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    padding: int | tuple[int, int] = 0
    groups: int = 1

    @nn.compact
    def __call__(self, x):
        c_in = x.shape[-1] // self.groups
        shape = (self.kernel_size, c_in, self.features)
        kernel, bias = self._parameters(shape, self.kernel_size * c_in, norm_axis=-1)
        x = x.astype(self.dtype)
        before, after = _both_sides(self.padding)
        both = min(before, after)
        if before != after:
            x = jnp.pad(x, ((0, 0),) * (x.ndim - 2) + ((before - both, after - both), (0, 0)))
        return convolution.conv1d(
            x, kernel, bias, stride=self.stride, dilation=self.dilation, padding=both, groups=self.groups
        )


class WNConvTranspose1d(_WeightNormed):
    """Weight-normalised transposed convolution of `[B, T, C]`.

    The kernel has `2 * stride` taps. The first and last `padding` outputs are omitted.

    Params: `v: [2 * stride, C, features]`, `g: [C]` (torch's first axis is the input channel here),
    `bias: [features]`.
    """

    stride: int = 1
    padding: int | tuple[int, int] = 0

    @nn.compact
    def __call__(self, x):
        shape = (2 * self.stride, x.shape[-1], self.features)
        kernel, bias = self._parameters(shape, 2 * self.stride * self.features, norm_axis=-2)
        x = x.astype(self.dtype)
        before, after = _both_sides(self.padding)
        both = min(before, after)
        y = convolution.conv_transpose1d(x, kernel, bias, stride=self.stride, padding=both)
        return y if before == after else y[:, before - both : y.shape[1] - (after - both)]


class WNConv2d(_WeightNormed):
    """Weight-normalised 2-D convolution of `[B, rows, cols, C]`.

    Params: `v: [*kernel_size, C, features]`, `g: [features]`, `bias: [features]`.
    """

    kernel_size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, x):
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel, bias = self._parameters(shape, math.prod(shape[:-1]), norm_axis=-1)
        x = x.astype(self.dtype)
        return convolution.conv2d(x, kernel, bias, stride=self.stride, dilation=self.dilation, padding=self.padding)


def _both_sides(padding):
    return (padding, padding) if isinstance(padding, int) else padding


def fold_weight_norm(g, v, norm_axis: int):
    """Return `g * v / ||v||`, as torch's `weight_norm(dim=0)`.

    The norm is over all axes but `norm_axis`.
    """
    shape = [1] * v.ndim
    shape[norm_axis] = -1
    return g.reshape(shape) * v / _norm(v, norm_axis)


@functools.partial(jax.jit, static_argnums=1)
def _initial_gain(v, norm_axis):
    return _norm(v, norm_axis).reshape(-1)


def _norm(v, norm_axis):
    axes = tuple(i for i in range(v.ndim) if i != norm_axis % v.ndim)
    xnp = np if isinstance(v, np.ndarray) else jnp  # numpy weights are folded once, on the host: nothing to compile
    return xnp.sqrt(xnp.sum(xnp.square(v), axis=axes, keepdims=True))


def count_parameters(params) -> int:
    """The number of scalars in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
