"""Zero padding of convolutions by its name, and the lengths that follow from it.

"floor" and "ceil" pad both sides alike. Strided convolutions then pad half their stride, rounded as the name says.
"causal" pads only the past. Strided convolutions have kernels of `2 * stride`.
"""

PADDINGS = ("floor", "ceil", "causal")


def around(reach: int, padding: str) -> tuple[int, int]:
    """Return the zeros before and after a convolution's input.

    The kernel spans `reach + 1` samples.
    """
    return (reach, 0) if padding == "causal" else (reach // 2, reach // 2)


def around_strided(stride: int, padding: str) -> tuple[int, int]:
    """Zeros before and after the input of a strided convolution.

    A transposed convolution omits as many outputs, after and before.
    """
    if padding == "causal":
        return stride, 0
    half = stride // 2 if padding == "floor" else -(-stride // 2)
    return half, half


def downsampled(length, stride: int, padding: str):
    """Length of the output of a strided convolution."""
    return (length + sum(around_strided(stride, padding))) // stride - 1


def upsampled(length, stride: int, padding: str):
    """Length of the output of a strided transposed convolution."""
    return (length + 1) * stride - sum(around_strided(stride, padding))
