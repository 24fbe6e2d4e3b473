"""Convolution along columns with a quarter of the multiplications.

It is meant for float32 on CPUs. A bilinear algorithm (Winograd, "Arithmetic Complexity of Computations", 1980) computes
`outputs` values of a correlation with `taps` taps as `C @ ((A @ x) * (B @ w))`. It needs as many products as A has
rows, instead of `outputs * taps`. Summed over channels and row taps, nearly all of the work is one matrix product per
row of A.

The interpolation points are those of the discrete Fourier transform, whose rounding errors are small. Each complex
product is three real ones. Errors are relative to the largest value of a tile, as in the FFT and Winograd forms of
GPU libraries. A NaN spreads over its tile.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax

# Longer tiles need fewer products per output. Beyond this size the transforms cost more than that saves.
_MAX_OUTPUTS = 24


def conv2d(x, kernel, *, row_stride: int, dilation: int, padding: tuple[int, int], n_rows: int):
    """2-D convolution of `x: [B, rows, cols, in]` with unstrided columns.

    Otherwise it is like `convolution.conv2d`.

    Args:
      kernel: `[row taps, col taps, in, out]`, with at least as many row taps as `row_stride`.
      row_stride: stride of the rows.
      dilation: dilation of the columns.
      padding: zeros on both sides of rows and of columns.
      n_rows: number of rows of the output.

    Returns:
      `[B, n_rows, cols + 2 * padding[1] - dilation * (col taps - 1), out]`.
    """
    b, rows, cols, c_in = x.shape
    row_taps, taps, _, c_out = kernel.shape
    n_cols = cols + 2 * padding[1] - dilation * (taps - 1)
    # Columns are `dilation` interleaved signals. Each is cut into tiles of `outputs` results.
    per_signal = -(-n_cols // dilation)
    tiles = -(-per_signal // _MAX_OUTPUTS)
    outputs = -(-per_signal // tiles)
    analysis, kernel_analysis, synthesis = transforms(taps, outputs)
    products, tile = analysis.shape

    blocks = tiles - (-(taps - 1) // outputs)  # a tile reaches this far into the blocks after it
    row_groups = n_rows + (row_taps - 1) // row_stride
    x = lax.pad(
        x,
        jnp.zeros((), x.dtype),
        [
            (0, 0, 0),
            (padding[0], row_groups * row_stride - rows - padding[0], 0),
            (padding[1], blocks * outputs * dilation - cols - padding[1], 0),
            (0, 0, 0),
        ],
    )
    x = x.reshape(b, row_groups, row_stride, blocks, outputs, dilation, c_in).transpose(2, 4, 3, 5, 0, 1, 6)
    kernel = jnp.einsum("pk,rkio->prio", kernel_analysis, kernel, precision=lax.Precision.HIGHEST)
    total = 0
    # The gradient of a split is one concatenation. Indexing would pad every phase with zeros.
    for phase, signal in enumerate(jnp.split(x, row_stride)):
        # A tile continues beyond its own block into the first samples of the next blocks.
        parts = [signal[0, : tile - i * outputs, i : i + tiles] for i in range(-(-tile // outputs))]
        tiled = jnp.concatenate(parts, axis=0).reshape(tile, -1)
        tiled = _matmul(analysis, tiled).reshape(products, -1, c_in)
        row_kernels = [kernel[:, row] for row in range(phase, row_taps, row_stride)]
        y = _matmul(tiled, jnp.concatenate(row_kernels, axis=-1))
        y = y.reshape(products, -1, row_groups, len(row_kernels), c_out)
        total = total + sum(y[:, :, i : i + n_rows, i] for i in range(len(row_kernels)))
    y = _matmul(synthesis, total.reshape(products, -1)).reshape(outputs, tiles, dilation, b, n_rows, c_out)
    return y.transpose(3, 4, 1, 0, 2, 5).reshape(b, n_rows, -1, c_out)[:, :, :n_cols]


@functools.cache
def transforms(taps: int, outputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the matrices A, B and C of the bilinear algorithm.

    `sum_k x[s + k] * w[k] == (C @ ((A @ x) * (B @ w)))[s]` for `s < outputs`.

    Returns:
      `A: [products, outputs + taps - 1]`, `B: [products, taps]`, `C: [outputs, products]`, float32.
    """
    tile = outputs + taps - 1
    n, k, s = np.arange(tile), np.arange(taps), np.arange(outputs)
    a, b, c = [], [], []
    for frequency in range(tile // 2 + 1):
        angle = 2 * np.pi * frequency / tile
        cos, sin = (lambda i, f=f, angle=angle: f(angle * i) for f in (np.cos, np.sin))
        if 2 * frequency in (0, tile):
            a += [cos(n)]
            b += [cos(k)]
            c += [cos(s) / tile]
            continue
        # X * conj(W) by Gauss: re = p - r, im = p + q of the products p, q, r below.
        a += [cos(n) - sin(n), cos(n), -sin(n)]
        b += [cos(k), sin(k) - cos(k), cos(k) + sin(k)]
        re, im = 2 * cos(s) / tile, -2 * sin(s) / tile
        c += [re + im, im, -re]
    return tuple(np.array(m, np.float32) for m in (a, b, np.array(c).T))


def _matmul(a, b):
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
