"""Per-platform implementations ("forms") of a convolution.

A convolution and its two gradients are three programs. The fastest form depends on the platform:

- CPU: XLA computes the gradient of a strided, transposed or grouped convolution as a dilated one, up to a hundred
  times slower than the forward pass. Every convolution is therefore rewritten as a dense one of stride 1 or as matrix
  products. Strides become space to depth. Groups become one batched product per tap. Kernel rows are gathered into
  channels. Padding is applied before the convolution for the same reason. Wide 2-D convolutions in float32 use
  `bilinear`.
- GPU: XLA calls cuDNN for the plain convolution and for both gradients. cuDNN gathers and pads internally. Compiled for
  an H200 in bfloat16, the plain form and its gradients move a fraction of the CPU form's bytes. It is 38 % for the
  widest layer of an STFT discriminator, 15 % for grouped layers, and 58 % for downsampling. The gradients of a dilated
  convolution, however, become convolutions with a kernel of the signal's size, or with zeros between the taps. A
  dilated signal is therefore folded into `dilation` signals.
- TPU: the plain form of a grouped convolution compiles into a quarter of the code. XLA folds and unfolds strided ones
  itself, and space to depth moves half as many bytes (compiled for a v5e, one item in bfloat16).

All forms give the same result up to rounding. `x` is `[B, T, in]` or `[B, rows, cols, in]` throughout.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from audiovae_jax.ops import bilinear
from audiovae_jax.ops.column_sum import add_bias

# Minimum number of taps and channels for which the bilinear form saves more than its transforms cost.
_MIN_FOR_BILINEAR = 5


@dataclasses.dataclass(frozen=True)
class Window:
    """Stride, dilation and padding per axis, and channel groups.

    The axes are time, or rows and columns. Zeros are padded on both sides. Only the last axis may be dilated, and it is
    not strided then.
    """

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int = 1


def conv_length(length: int, taps: int, *, stride: int = 1, dilation: int = 1, padding: int = 0) -> int:
    """Return the output length of a convolution along one axis, by torch's formula."""
    return (length + 2 * padding - dilation * (taps - 1) - 1) // stride + 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def convolve(x, kernel, bias, window: Window):
    """Convolve and add a bias, in the form for the compilation platform.

    `bias` has shape `[out]` and may be None. Only reverse-mode differentiation is supported.
    """
    return _choose(x, kernel, bias, window)


def _forward(x, kernel, bias, window):
    return _choose_in_training(x, kernel, bias, window), (x, kernel, bias)


def _backward(window, residuals, g):
    return _choose_pull_back(*residuals, g, window)


convolve.defvjp(_forward, _backward)


# Jitted, so that convolutions of the same shape are traced only once.
@functools.partial(jax.jit, static_argnums=3)
def _choose(x, kernel, bias, window):
    return _by_platform(FORMS, lambda form: lambda *args: form(*args, window), x, kernel, bias)


@functools.partial(jax.jit, static_argnums=3)
def _choose_in_training(x, kernel, bias, window):
    return _by_platform(FORMS_IN_TRAINING, lambda form: lambda *args: form(*args, window), x, kernel, bias)


@functools.partial(jax.jit, static_argnums=4)
def _choose_pull_back(x, kernel, bias, g, window):
    # The forward pass is recomputed, which is cheaper than storing its transformed input.
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
    """The plain form, with a dilated signal folded into `dilation` undilated signals."""
    taps, dilation, padding = kernel.shape[-3], window.dilation[-1], window.padding[-1]
    if dilation == 1:
        return add_bias(_plain(x, kernel, window), bias)
    axis = x.ndim - 2
    n_out = conv_length(x.shape[axis], taps, dilation=dilation, padding=padding)
    # A padding that is not a multiple of the dilation would rotate the signals, so the remainder is padded first.
    x = _pad(x, axis, padding % dilation, padding % dilation)
    per_signal = -(-x.shape[axis] // dilation)  # explicit, since reshape cannot infer it from a symbolic length
    x = _pad(x, axis, 0, per_signal * dilation - x.shape[axis])
    x = x.reshape(*x.shape[:axis], per_signal, dilation, x.shape[-1])
    if x.ndim == 4:  # the signals lie along a separate axis, which moves no data
        y = _plain(x, kernel[:, None], Window((1, 1), (1, 1), (padding // dilation, 0)))
        y = y.reshape(x.shape[0], -1, y.shape[-1])
        return add_bias(y[:, :n_out], bias)
    # The signals become batch items: XLA calls cuDNN's 3-D convolutions channels-first and would transpose everything.
    # The bias is added before transposing back, so that its gradient sums the same array as the kernel's reads.
    b = x.shape[0]
    x = jnp.moveaxis(x, 3, 1).reshape(b * dilation, *x.shape[1:3], x.shape[-1])
    y = add_bias(_plain(x, kernel, Window(window.stride, (1, 1), (window.padding[0], padding // dilation))), bias)
    y = jnp.moveaxis(y.reshape(b, dilation, *y.shape[1:]), 1, 3)
    return y.reshape(*y.shape[:2], -1, y.shape[-1])[:, :, :n_out]


def _folded_in_training(x, kernel, bias, window):
    return _folded(x, _in_order(kernel), bias, window)


@jax.custom_vjp
def _in_order(kernel):
    """Return the kernel, with row-major layout for it and for its gradient.

    cuDNN puts the output channels first. Without this constraint the gradient, Adam's moments and every other array
    derived from it are transposed to that layout and back. Compiled for an H200, a step of 16 items of `base.py` has
    327 transposes instead of 830.
    """
    return with_layout_constraint(kernel, Layout(tuple(range(kernel.ndim))))


def _in_order_backward(_, g):
    return (lax.optimization_barrier(_in_order(g)),)


_in_order.defvjp(lambda kernel: (_in_order(kernel), None), _in_order_backward)


def _valid(x, kernel, dilation):
    """The plain form of a 1-D convolution of stride 1 without padding."""
    return _plain(x, kernel, Window((1,), (dilation,), (0,)))


# The next three functions are a 1-D convolution without padding and its two gradients; each derivative of one is
# another. All have the order of axes of XLA's fast CPU kernel. XLA gives this order to the gradients that JAX derives,
# except in loops, in conditionals and in second derivatives. There they take several times as long.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _valid_on_cpu(x, kernel, dilation):
    """Convolve `[B, T, in]` with `[taps, in, out]`."""
    return _valid(x, kernel, dilation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _input_gradient(g, kernel, dilation):
    """The gradient of `_valid_on_cpu` with respect to `x`.

    `g` is the gradient of its result.
    """
    reach = (kernel.shape[0] - 1) * dilation
    return _plain(g, kernel[::-1].transpose(0, 2, 1), Window((1,), (dilation,), (reach,)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _kernel_gradient(x, g, dilation):
    """The gradient of `_valid_on_cpu` with respect to `kernel`."""
    # The channels of `x` are the batch, and the batch is summed over as channels.
    return _plain(x.transpose(2, 1, 0), g.transpose(1, 0, 2), Window((dilation,), (1,), (0,))).transpose(1, 0, 2)


def _with_gradients(function, to_first, to_second):
    def forward(first, second, dilation):
        return function(first, second, dilation), (first, second)

    def backward(dilation, operands, cotangent):
        return to_first(*operands, cotangent, dilation), to_second(*operands, cotangent, dilation)

    function.defvjp(forward, backward)


_with_gradients(
    _valid_on_cpu,
    lambda x, kernel, g, dilation: _input_gradient(g, kernel, dilation),
    lambda x, kernel, g, dilation: _kernel_gradient(x, g, dilation),
)
_with_gradients(
    _input_gradient,
    lambda g, kernel, x, dilation: _valid_on_cpu(x, kernel, dilation),
    lambda g, kernel, x, dilation: _kernel_gradient(x, g, dilation),
)
_with_gradients(
    _kernel_gradient,
    lambda x, g, kernel, dilation: _input_gradient(g, kernel, dilation),
    lambda x, g, kernel, dilation: _valid_on_cpu(x, kernel, dilation),
)


def _on_tpu(x, kernel, bias, window):
    """Space to depth for strided 1-D convolutions, otherwise the plain form."""
    if x.ndim == 3 and window.stride[0] > 1 and window.groups == 1:
        return add_bias(_dense_1d(x, kernel, window, valid=_valid), bias)
    return add_bias(_plain(x, kernel, window), bias)


def _on_cpu(x, kernel, bias, window):
    return add_bias(_dense(x, kernel, window), bias)


def _dense(x, kernel, window):
    if x.ndim == 3:
        return _dense_1d(x, kernel, window)
    wide = min(kernel.shape[1:]) >= _MIN_FOR_BILINEAR and kernel.shape[0] >= window.stride[0]
    is_bilinear = wide and window.stride[1] == 1 and x.dtype == jnp.float32
    # If the input is narrower than the output, gathering its rows is cheaper than summing one result per row.
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
    """Rewrite the convolution with a one-row kernel.

    The other rows become input channels.
    """
    n_rows = conv_length(x.shape[1], kernel.shape[0], stride=window.stride[0], padding=window.padding[0])
    x = _pad(x, 1, window.padding[0], window.padding[0])
    last = (n_rows - 1) * window.stride[0] + 1
    x = jnp.concatenate([x[:, i : i + last : window.stride[0]] for i in range(kernel.shape[0])], axis=-1)
    kernel = kernel.transpose(1, 0, 2, 3).reshape(1, kernel.shape[1], -1, kernel.shape[-1])
    return x, kernel, Window((1, window.stride[1]), window.dilation, (0, window.padding[1]))


def _dense_1d(x, kernel, window, valid=_valid_on_cpu):
    (stride,), (dilation,), (padding,) = window.stride, window.dilation, window.padding
    length, channels = x.shape[1:]
    if stride == 1 and window.groups == 1:
        x = _pad(x, 1, padding, padding)
    else:
        # Space to depth: `stride` samples become the channels of one sample. The kernel's taps are grouped likewise.
        n_out = conv_length(length, kernel.shape[0], stride=stride, padding=padding)
        taps = -(-kernel.shape[0] // stride)
        x = _pad(x, 1, padding, (n_out - 1 + taps) * stride - length - padding)
        kernel = _pad(kernel, 0, 0, taps * stride - kernel.shape[0])
        if window.groups > 1:
            return _grouped(x, kernel, stride, window.groups, n_out)
        x = x.reshape(x.shape[0], -1, stride * channels)
        kernel, dilation = kernel.reshape(taps, -1, kernel.shape[-1]), 1
    return jnp.matmul(x, kernel[0]) if kernel.shape[0] == 1 else valid(x, kernel, dilation)


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
    """Zero-pad one axis. A negative number crops."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (low, high, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), config)


FORMS = {"cpu": _on_cpu, "tpu": _on_tpu, "default": _folded}
# Exported programs cannot contain layout constraints, and programs without gradients gain nothing from them.
FORMS_IN_TRAINING = {**FORMS, "default": _folded_in_training}
