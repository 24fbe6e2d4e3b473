"""Every fast form against XLA's own convolution, values and gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from audiovae_jax.ops import conv_forms, convolution


def _random(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape), jnp.float32)


def _assert_every_form_is(reference, x, kernel, window):
    bias = _random(kernel.shape[-1])
    for form in {*conv_forms.FORMS.values(), *conv_forms.FORMS_IN_TRAINING.values()}:
        _assert_same_with_gradients(
            lambda x, kernel, bias, form=form: form(x, kernel, bias, window),
            lambda x, kernel, bias: reference(x, kernel) + bias,
            x,
            kernel,
            bias,
        )


def _assert_same_with_gradients(ours, theirs, *args):
    cotangent = _random(*jax.eval_shape(theirs, *args).shape)

    @jax.jit  # one program compiles in less time than each operation
    def run(*args):
        (actual, our_pull_back), (expected, pull_back) = (jax.vjp(function, *args) for function in (ours, theirs))
        return (actual, expected), (our_pull_back(cotangent), pull_back(cotangent))

    (actual, expected), gradients = run(*args)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


@pytest.mark.parametrize("length", [61, *(pytest.param(length, marks=pytest.mark.slow) for length in (64, 30))])
@pytest.mark.parametrize(
    ("taps", "stride", "dilation", "padding", "groups"),
    [
        (7, 1, 1, 3, 1),
        (7, 1, 3, 9, 1),
        (7, 1, 9, 27, 1),
        (4, 1, 3, 4, 1),
        (8, 4, 1, 2, 1),
        (6, 3, 1, 1, 1),
        (5, 3, 1, 2, 1),
        (9, 4, 1, 4, 4),
        (1, 1, 1, 0, 1),
    ],
)
def test_conv1d(length, taps, stride, dilation, padding, groups):
    x, kernel = _random(2, length, 8), _random(taps, 8 // groups, 12)

    def reference(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride,),
            [(padding, padding)],
            rhs_dilation=(dilation,),
            feature_group_count=groups,
            dimension_numbers=("NWC", "WIO", "NWC"),
        )

    def ours(x, kernel):
        return convolution.conv1d(x, kernel, stride=stride, dilation=dilation, padding=padding, groups=groups)

    _assert_same_with_gradients(ours, reference, x, kernel)
    window = conv_forms.Window((stride,), (dilation,), (padding,), groups)
    _assert_every_form_is(reference, x, kernel, window)


@pytest.mark.parametrize(("taps", "stride", "dilation", "padding"), [(7, 1, 9, 27), (4, 1, 3, 4), (6, 3, 1, 1)])
def test_forms_accept_a_symbolic_length(taps, stride, dilation, padding):
    """As in an export for any length, which contains every platform's form."""
    kernel, bias = _random(taps, 4, 6), _random(6)
    window = conv_forms.Window((stride,), (dilation,), (padding,))
    shape = jax.ShapeDtypeStruct(export.symbolic_shape("b, t, 4", constraints=["t >= 30"]), jnp.float32)
    for form in conv_forms.FORMS.values():
        convolve = jax.jit(lambda x, form=form: form(x, kernel, bias, window))
        exported = export.export(convolve)(shape)
        x = _random(3, 61, 4)
        np.testing.assert_allclose(exported.call(x), convolve(x), atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 3, 5, 8])
def test_conv_transpose1d(stride):
    x, kernel, padding = _random(2, 9, 4), _random(2 * stride, 4, 6), stride // 2

    def reference(x, kernel):
        pad = 2 * stride - 1 - padding
        return lax.conv_general_dilated(
            x,
            kernel[::-1],
            (1,),
            [(pad, pad)],
            lhs_dilation=(stride,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )

    def ours(x, kernel, bias=None):
        return convolution.conv_transpose1d(x, kernel, bias, stride=stride, padding=padding)

    _assert_same_with_gradients(ours, reference, x, kernel)
    bias = _random(6)
    _assert_same_with_gradients(ours, lambda x, kernel, bias: reference(x, kernel) + bias, x, kernel, bias)


# The plain form, and the bilinear one where it applies: with separate rows, and with gathered rows.
@pytest.mark.parametrize(
    "channels", [(3, 5), *(pytest.param(channels, marks=pytest.mark.slow) for channels in ((8, 6), (6, 8)))]
)
@pytest.mark.parametrize(
    ("stride", "dilation", "kernel"),
    [
        ((2, 1), (1, 2), (3, 9)),
        ((1, 1), (1, 1), (3, 3)),
        ((2, 2), (1, 1), (5, 5)),
        pytest.param((1, 1), (1, 4), (2, 9), marks=pytest.mark.slow),
        pytest.param((2, 1), (1, 4), (3, 9), marks=pytest.mark.slow),
        pytest.param((3, 1), (1, 1), (4, 5), marks=pytest.mark.slow),
    ],
)
def test_conv2d(stride, dilation, kernel, channels):
    padding = (kernel[0] // 2, kernel[1] // 2 * dilation[1])
    x, kernel = _random(2, 11, 33, channels[0]), _random(*kernel, *channels)

    def reference(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            stride,
            [(p, p) for p in padding],
            rhs_dilation=dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def ours(x, kernel):
        return convolution.conv2d(x, kernel, stride=stride, dilation=dilation, padding=padding)

    _assert_same_with_gradients(ours, reference, x, kernel)
    _assert_every_form_is(reference, x, kernel, conv_forms.Window(stride, dilation, padding))


def test_a_signal_shorter_than_the_kernel_is_refused():
    with pytest.raises(ValueError, match="shorter than a kernel"):
        convolution.conv1d(jnp.zeros((1, 2, 1)), jnp.zeros((7, 1, 1)))
    with pytest.raises(ValueError, match="is shorter than a kernel of 3 x 9"):
        convolution.conv2d(jnp.zeros((1, 9, 12, 8)), jnp.zeros((3, 9, 8, 8)), dilation=(1, 2))


def test_rows_may_be_strided_beyond_the_kernel():
    x, kernel = _random(1, 7, 12, 8), _random(1, 3, 8, 6)
    y = convolution.conv2d(x, kernel, stride=(2, 1), padding=(0, 1))
    np.testing.assert_allclose(y, convolution.conv2d(x[:, ::2], kernel, padding=(0, 1)), atol=1e-4)


@pytest.mark.parametrize("dilation", [1, 3])
def test_second_derivatives_are_xlas(dilation):
    def penalty(form):
        def squared(x, kernel):
            pulled = jax.grad(lambda *args: jnp.sin(form(*args)).sum(), (0, 1))(x, kernel)
            return sum(jnp.square(gradient).mean() for gradient in pulled)

        return jax.jit(jax.grad(squared, (0, 1)))

    args = _random(2, 40, 5), _random(7, 5, 4)
    window = conv_forms.Window((1,), (dilation,), (3 * dilation,))
    ours = penalty(lambda x, kernel: conv_forms.convolve(x, kernel, None, window))
    theirs = penalty(lambda x, kernel: conv_forms._plain(x, kernel, window))
    for a, b in zip(ours(*args), theirs(*args), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize("order", [1, 2])
def test_gradients_in_a_loop_are_in_the_order_of_xlas_fast_kernel(order):
    def loss(x, kernel):
        return jnp.square(conv_forms.convolve(x, kernel, None, conv_forms.Window((1,), (3,), (9,)))).sum()

    def penalty(x, kernel):
        return jnp.square(jax.grad(loss)(x, kernel)).sum()

    def summed(x, kernel):
        of_part = {1: loss, 2: penalty}[order]
        return lax.scan(lambda total, part: (total + of_part(part, kernel), None), 0.0, x)[0]

    # The time is what matters, but a test of it would fail on a busy machine.
    program = jax.jit(jax.grad(summed, (0, 1))).lower(_random(3, 2, 64, 16), _random(7, 16, 8)).compile().as_text()
    windows = re.findall(r"convolution\(.*window={(.*?)}, dim_labels=(\w+)->(\w+)", program)
    assert len(windows) >= 1 + order
    for window, *order_of_axes in windows:
        assert order_of_axes == ["b0f_0io", "b0f"]
        assert "lhs_dilate" not in window
