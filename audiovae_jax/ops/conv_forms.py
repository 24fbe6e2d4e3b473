"""The forms of a convolution, and the one place that chooses between them.

A convolution and its two gradients are three programs, and what is fast differs:

- CPUs: XLA's gradient of a strided, transposed or grouped convolution is a dilated one, up to a hundred times
  slower there than the forward pass. So each becomes a dense one of stride 1 or matrix products: strides by space
  to depth, groups by one batched product per tap, rows by gathering their taps into channels, and padding comes
  before the convolution, for the same reason. Wide 2-D ones in float32 take the form of `bilinear`.
- GPUs: XLA calls cuDNN for the plain convolution and for both gradients, which gathers and pads by itself.
  Planned for an H200 (bfloat16, forward and both gradients), plain ones move, of what the CPU's forms do: 38 % for
  the widest layer of an STFT discriminator, 15 % for grouped ones, 58 % for downsampling. But the gradients of a
  dilated convolution are planned as convolutions with a kernel of the size of the signal, or with zeros between
  the taps. So there a dilated signal is folded into as many as the dilation.
- TPUs: plain ones compile into a quarter of the code where they are grouped; but of strided ones, which XLA folds
  by itself and back, space to depth moves half as much (planned for a v5e, one item in bfloat16).

The result is the same to rounding, whichever is taken. `x` is `[B, T, in]` or `[B, rows, cols, in]` here.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from audiovae_jax.ops import bilinear
from audiovae_jax.ops.column_sum import add_bias

# Taps and channels from which on the bilinear form pays for its transforms.
_MIN_FOR_BILINEAR = 5


@dataclasses.dataclass(frozen=True)
class Window:
    """How a kernel lies over a signal: numbers per axis (time, or rows and columns), and groups of channels.

    `padding` is of zeros on both sides. The last axis alone may be dilated, and is not strided then.
    """

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int = 1


def conv_length(length: int, taps: int, *, stride: int = 1, dilation: int = 1, padding: int = 0) -> int:
    """The number of outputs of a convolution along one axis, as torch counts them."""
    return (length + 2 * padding - dilation * (taps - 1) - 1) // stride + 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def convolve(x, kernel, bias, window: Window):
    """The convolution, plus a bias `[out]` that may be None, in the form of the platform that it is compiled for.

    Only reverse mode can differentiate it.
    """
    return _choose(x, kernel, bias, window)


def _forward(x, kernel, bias, window):
    return _choose_in_training(x, kernel, bias, window), (x, kernel, bias)


def _backward(window, residuals, g):
    return _choose_pull_back(*residuals, g, window)


convolve.defvjp(_forward, _backward)


# Jitted, so that convolutions of one shape are traced once however often they are used.
@functools.partial(jax.jit, static_argnums=3)
def _choose(x, kernel, bias, window):
    return _by_platform(FORMS, lambda form: lambda *args: form(*args, window), x, kernel, bias)


@functools.partial(jax.jit, static_argnums=3)
def _choose_in_training(x, kernel, bias, window):
    return _by_platform(FORMS_IN_TRAINING, lambda form: lambda *args: form(*args, window), x, kernel, bias)


@functools.partial(jax.jit, static_argnums=4)
def _choose_pull_back(x, kernel, bias, g, window):
    # What the forward pass made of the input is made again: cheaper than to keep it.
    def pulled_back(form):
        return lambda g, *operands: jax.vjp(lambda *operands: form(*operands, window), *operands)[1](g)

    return _by_platform(FORMS_IN_TRAINING, pulled_back, g, x, kernel, bias)


def _by_platform(forms, of_form, *args):
    return lax.platform_dependent(*args, **{platform: of_form(form) for platform, form in forms.items()})


def _plain(x, kernel, window):
    axes = "HW"[: x.ndim - 2]
    return lax.conv_general_dilated(
        x,
        kernel,
        window.stride,
        [(p, p) for p in window.padding],
        rhs_dilation=window.dilation,
        feature_group_count=window.groups,
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
    )


def _folded(x, kernel, bias, window):
    """The plain form, without dilation: of `dilation` signals in place of one."""
    taps, dilation, padding = kernel.shape[-3], window.dilation[-1], window.padding[-1]
    if dilation == 1:
        return add_bias(_plain(x, kernel, window), bias)
    axis = x.ndim - 2
    n_out = conv_length(x.shape[axis], taps, dilation=dilation, padding=padding)
    # Padding that is no multiple of the dilation would turn the signals round: so much of it comes first.
    x = _pad(x, axis, padding % dilation, padding % dilation)
    per_signal = -(-x.shape[axis] // dilation)  # given to reshape, which cannot infer it from a symbolic length
    x = _pad(x, axis, 0, per_signal * dilation - x.shape[axis])
    x = x.reshape(*x.shape[:axis], per_signal, dilation, x.shape[-1])
    if x.ndim == 4:  # side by side along an axis of their own, which moves nothing
        y = _plain(x, kernel[:, None], Window((1, 1), (1, 1), (padding // dilation, 0)))
        y = y.reshape(x.shape[0], -1, y.shape[-1])
        return add_bias(y[:, :n_out], bias)
    # One after the other as items: XLA calls cuDNN's 3-D convolutions with channels first, so that all would turn.
    # The bias comes before they turn back, so that its gradient is a sum of what the kernel's reads.
    b = x.shape[0]
    x = jnp.moveaxis(x, 3, 1).reshape(b * dilation, *x.shape[1:3], x.shape[-1])
    y = add_bias(_plain(x, kernel, Window(window.stride, (1, 1), (window.padding[0], padding // dilation))), bias)
    y = jnp.moveaxis(y.reshape(b, dilation, *y.shape[1:]), 1, 3)
    return y.reshape(*y.shape[:2], -1, y.shape[-1])[:, :, :n_out]


def _folded_in_training(x, kernel, bias, window):
    return _folded(x, _in_order(kernel), bias, window)


@jax.custom_vjp
def _in_order(kernel):
    """The kernel, it and its gradient laid out in the order of their axes.

    cuDNN has the output's channels first, and else all that becomes of the gradient, Adam's moments too, is turned
    to that and back, and the gradient once for everything that reads it: planned for an H200, a step of 16 items of
    `base.py` had 327 transposes in place of 830.
    """
    return with_layout_constraint(kernel, Layout(tuple(range(kernel.ndim))))


def _in_order_backward(_, g):
    return (lax.optimization_barrier(_in_order(g)),)


_in_order.defvjp(lambda kernel: (_in_order(kernel), None), _in_order_backward)


def _on_tpu(x, kernel, bias, window):
    """Space to depth for strided signals, else the plain form."""
    form = _dense if x.ndim == 3 and window.stride[0] > 1 and window.groups == 1 else _plain
    return add_bias(form(x, kernel, window), bias)


def _on_cpu(x, kernel, bias, window):
    return add_bias(_dense(x, kernel, window), bias)


def _dense(x, kernel, window):
    if x.ndim == 3:
        return _dense_1d(x, kernel, window)
    wide = min(kernel.shape[1:]) >= _MIN_FOR_BILINEAR and kernel.shape[0] >= window.stride[0]
    is_bilinear = wide and window.stride[1] == 1 and x.dtype == jnp.float32
    # Where the input is narrower than the output, its rows are cheaper to gather than the results of each to sum.
    if not is_bilinear or x.shape[-1] < kernel.shape[-1]:
        x, kernel, window = _rows_as_channels(x, kernel, window)
    if is_bilinear:
        return bilinear.conv2d(
            x,
            kernel,
            row_stride=window.stride[0],
            dilation=window.dilation[1],
            padding=window.padding,
            n_rows=conv_length(x.shape[1], kernel.shape[0], stride=window.stride[0], padding=window.padding[0]),
        )
    columns = Window(window.stride[1:], window.dilation[1:], window.padding[1:])
    y = _dense_1d(x.reshape(-1, *x.shape[2:]), kernel[0], columns)
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _rows_as_channels(x, kernel, window):
    """The same convolution with a kernel of one row: its others are channels of the input."""
    n_rows = conv_length(x.shape[1], kernel.shape[0], stride=window.stride[0], padding=window.padding[0])
    x = _pad(x, 1, window.padding[0], window.padding[0])
    last = (n_rows - 1) * window.stride[0] + 1
    x = jnp.concatenate([x[:, i : i + last : window.stride[0]] for i in range(kernel.shape[0])], axis=-1)
    kernel = kernel.transpose(1, 0, 2, 3).reshape(1, kernel.shape[1], -1, kernel.shape[-1])
    return x, kernel, Window((1, window.stride[1]), window.dilation, (0, window.padding[1]))


def _dense_1d(x, kernel, window):
    (stride,), (dilation,), (padding,) = window.stride, window.dilation, window.padding
    length, channels = x.shape[1:]
    if stride == 1 and window.groups == 1:
        return _of_stride_1(_pad(x, 1, padding, padding), kernel, dilation)
    # Space to depth: `stride` samples become channels of one, and the kernel's taps likewise.
    n_out = conv_length(length, kernel.shape[0], stride=stride, padding=padding)
    taps = -(-kernel.shape[0] // stride)
    x = _pad(x, 1, padding, (n_out - 1 + taps) * stride - length - padding)
    kernel = _pad(kernel, 0, 0, taps * stride - kernel.shape[0])
    if window.groups > 1:
        return _grouped(x, kernel, stride, window.groups, n_out)
    x = x.reshape(x.shape[0], -1, stride * channels)
    return _of_stride_1(x, kernel.reshape(taps, -1, kernel.shape[-1]))


def _of_stride_1(x, kernel, dilation=1):
    if kernel.shape[0] == 1:
        return jnp.matmul(x, kernel[0])
    return _plain(x, kernel, Window((1,), (dilation,), (0,)))


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


FORMS = {"cpu": _on_cpu, "tpu": _on_tpu, "default": _folded}
# An exported program may not say how arrays are laid out, and one without gradients has nothing to gain from it.
FORMS_IN_TRAINING = {**FORMS, "default": _folded_in_training}
