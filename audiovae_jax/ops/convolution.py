"""Convolutions, written in the forms that compile to fast forward and backward passes.

XLA's gradient of a strided, transposed or grouped convolution is a dilated one, which the CPU
backend runs up to a hundred times slower than the forward pass, and which no matrix unit likes.
So every convolution here becomes a dense one of stride 1 (or matrix products): strides by
space-to-depth, transposed convolutions by depth-to-space, groups by one batched product per tap.
Padding happens before the convolution, never in it, for the same reason.

Signals are channel-last. Kernels are `[taps, in / groups, out]`, in 2-D `[rows, cols, in, out]`.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from audiovae_jax.ops import bilinear

# Taps and channels from which on the bilinear form pays for its transforms.
_MIN_FOR_BILINEAR = 5


def conv1d(x, kernel, *, stride: int = 1, dilation: int = 1, padding: int = 0, groups: int = 1):
    """1-D convolution of `x: [..., T, in]`, zero-padded by `padding` on both sides.

    Returns:
      `[..., floor((T + 2 * padding - dilation * (taps - 1) - 1) / stride) + 1, out]`.

    Raises:
      ValueError: the padded signal is shorter than the kernel, or stride and dilation both exceed 1.
    """
    *batch, length, channels = x.shape
    taps = kernel.shape[0]
    n_out = conv_length(length, taps, stride=stride, dilation=dilation, padding=padding)
    if n_out < 1:
        raise ValueError(
            f"{length} samples with padding {padding} are shorter than a kernel of {taps} with dilation {dilation}"
        )
    x = x.reshape(-1, length, channels)
    if stride == 1 and groups == 1:
        y = _dense(_pad(x, 1, padding, padding), kernel, dilation)
    elif dilation == 1:
        # Space to depth: `stride` samples become channels of one, and the kernel's taps likewise.
        taps = -(-taps // stride)
        x = _pad(x, 1, padding, (n_out - 1 + taps) * stride - length - padding)
        kernel = _pad(kernel, 0, 0, taps * stride - kernel.shape[0])
        if groups == 1:
            x = x.reshape(x.shape[0], -1, stride * channels)
            y = _dense(x, kernel.reshape(taps, -1, kernel.shape[-1]))
        else:
            y = _grouped(x, kernel, stride, groups, n_out)
    else:
        raise ValueError(f"stride={stride} and dilation={dilation} cannot both exceed 1")
    return y.reshape(*batch, n_out, -1)


def conv_length(length: int, taps: int, *, stride: int = 1, dilation: int = 1, padding: int = 0) -> int:
    """The number of outputs of `conv1d`, as torch counts them."""
    return (length + 2 * padding - dilation * (taps - 1) - 1) // stride + 1


def conv_transpose1d(x, kernel, *, stride: int, padding: int = 0):
    """1-D transposed convolution of `x: [B, T, in]` with `kernel: [2 * stride, in, out]`.

    Returns:
      `[B, (T + 1) * stride - 2 * padding, out]`.
    """
    b, t, _ = x.shape
    taps, c_in, c_out = kernel.shape
    if taps != 2 * stride:
        raise ValueError(f"a transposed convolution of stride {stride} needs {2 * stride} taps, not {taps}")
    # Each output block of `stride` samples sees two inputs: the earlier through the kernel's second
    # half, the later through its first.
    kernel = kernel.reshape(2, stride, c_in, c_out)[::-1].transpose(0, 2, 1, 3).reshape(2, c_in, stride * c_out)
    y = _dense(_pad(x, 1, 1, 1), kernel).reshape(b, (t + 1) * stride, c_out)
    return y[:, padding : y.shape[1] - padding]


def conv2d(x, kernel, *, stride=(1, 1), dilation=(1, 1), padding=(0, 0)):
    """2-D convolution of `x: [B, rows, cols, in]`, zero-padded on all sides.

    The rows' taps are gathered into channels, which leaves a 1-D convolution along the columns; wide ones in
    float32 take the form of `bilinear` on a CPU.

    Args:
      kernel: `[rows, cols, in, out]`.
      stride, dilation, padding: of rows and columns; rows cannot be dilated, nor columns both
        strided and dilated.

    Raises:
      ValueError: the padded input is smaller than the kernel, or rows are dilated.
    """
    if dilation[0] != 1:
        raise ValueError(f"dilation={dilation}: rows cannot be dilated")
    n_rows = conv_length(x.shape[1], kernel.shape[0], stride=stride[0], padding=padding[0])
    n_cols = conv_length(x.shape[2], kernel.shape[1], stride=stride[1], dilation=dilation[1], padding=padding[1])
    if min(n_rows, n_cols) < 1:
        raise ValueError(
            f"{x.shape[1]} x {x.shape[2]} with padding {padding} is shorter than a kernel of {kernel.shape[0]} x "
            f"{kernel.shape[1]} with dilation {dilation}"
        )
    wide = min(kernel.shape[1:]) >= _MIN_FOR_BILINEAR and kernel.shape[0] >= stride[0]
    if wide and stride[1] == 1 and x.dtype == jnp.float32:
        return _by_platform(x, kernel, stride[0], dilation[1], tuple(padding), n_rows)
    return _rows_as_channels(
        x, kernel, row_stride=stride[0], col_stride=stride[1], dilation=dilation[1], padding=padding, n_rows=n_rows
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _by_platform(x, kernel, row_stride, dilation, padding, n_rows):
    """The bilinear form where arithmetic is the price; where matrix units make it cheap, the plain one."""
    return _choose(x, kernel, row_stride=row_stride, dilation=dilation, padding=padding, n_rows=n_rows)


def _by_platform_forward(x, kernel, *options):
    return _by_platform(x, kernel, *options), (x, kernel)


def _by_platform_backward(row_stride, dilation, padding, n_rows, residuals, g):
    options = {"row_stride": row_stride, "dilation": dilation, "padding": padding, "n_rows": n_rows}
    return _choose_pull_back(*residuals, g, **options)


_by_platform.defvjp(_by_platform_forward, _by_platform_backward)
_OPTIONS = ("row_stride", "dilation", "padding", "n_rows")


# Jitted, so that convolutions of one shape are traced once however often they are used.
@functools.partial(jax.jit, static_argnames=_OPTIONS)
def _choose(x, kernel, **options):
    cpu, default = _forms(**options)
    return lax.platform_dependent(x, kernel, cpu=cpu, default=default)


@functools.partial(jax.jit, static_argnames=_OPTIONS)
def _choose_pull_back(x, kernel, g, **options):
    # What the forward pass made of the input is made again: cheaper than to keep it.
    def pulled_back(form):
        return lambda x, kernel, g: jax.vjp(form, x, kernel)[1](g)

    cpu, default = map(pulled_back, _forms(**options))
    return lax.platform_dependent(x, kernel, g, cpu=cpu, default=default)


def _forms(**options):
    return functools.partial(bilinear.conv2d, **options), functools.partial(_rows_as_channels, **options)


def _rows_as_channels(x, kernel, *, row_stride, dilation, padding, n_rows, col_stride=1):
    x = _pad(x, 1, padding[0], padding[0])
    last = (n_rows - 1) * row_stride + 1
    x = jnp.concatenate([x[:, i : i + last : row_stride] for i in range(kernel.shape[0])], axis=-1)
    kernel = kernel.transpose(1, 0, 2, 3).reshape(kernel.shape[1], -1, kernel.shape[-1])
    return conv1d(x, kernel, stride=col_stride, dilation=dilation, padding=padding[1])


def _dense(x, kernel, dilation=1):
    if kernel.shape[0] == 1:
        return jnp.matmul(x, kernel[0])
    return lax.conv_general_dilated(
        x, kernel, (1,), "VALID", rhs_dilation=(dilation,), dimension_numbers=("NWC", "WIO", "NWC")
    )


def _grouped(x, kernel, stride, groups, n_out):
    b, _, channels = x.shape
    c_in, c_out = channels // groups, kernel.shape[-1] // groups
    taps = kernel.shape[0] // stride
    x = x.reshape(b, -1, stride, groups, c_in).transpose(3, 0, 1, 2, 4).reshape(groups, b, -1, stride * c_in)
    kernel = kernel.reshape(taps, stride, c_in, groups, c_out).transpose(0, 3, 1, 2, 4)
    kernel = kernel.reshape(taps, groups, stride * c_in, c_out)
    y = sum(jnp.einsum("gbti,gio->gbto", x[:, :, i : i + n_out], kernel[i]) for i in range(taps))
    return y.transpose(1, 2, 0, 3).reshape(b, n_out, groups * c_out)


def _pad(x, axis, low, high):
    """Zero-pad one axis; a negative number cuts."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (low, high, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), config)
