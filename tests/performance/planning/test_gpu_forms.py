"""XLA's plans for the GPU forms; skipped if its compiler is not installed."""

import json
import os
import subprocess
import sys

import pytest
from conftest import plannable

pytestmark = pytest.mark.slow

_COMPILED = """
import json
import sys
import jax, jax.numpy as jnp
from audiovae_jax.models.layers import fold_weight_norm
from audiovae_jax.ops.column_sum import add_bias
from audiovae_jax.ops.convolution import conv1d, conv_transpose1d
from audiovae_jax.ops.activations import snake
from audiovae_jax.performance.planning import compiling, targets
from audiovae_jax.distributed import mesh

here = mesh.replicated(mesh.make_mesh(compiling.find_devices(*targets.parse(["h200:1x1"]))))

def shape(*lengths, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(lengths, dtype, sharding=here)

def unit(x, bias, alpha, kernel, last_bias):
    return conv1d(snake(add_bias(x, bias), alpha), kernel, last_bias, padding=3)

def upsampling(x, bias, alpha, kernel, last_bias):
    kernel = fold_weight_norm(alpha, kernel.astype(jnp.float32), norm_axis=-2).astype(x.dtype)
    return conv_transpose1d(snake(add_bias(x, bias), alpha), kernel, last_bias, stride=4, padding=2)

def gradient(x, bias, alpha, kernel, last_bias, cotangent, moment):
    y, pull_back = jax.vjp(layer, x, bias, alpha, kernel, last_bias)
    dx, dbias, dalpha, dkernel, dlast = pull_back(cotangent)
    moment = 0.9 * moment + 0.1 * dkernel.astype(jnp.float32)
    square = jnp.sum(jnp.square(dkernel.astype(jnp.float32)))
    return y, dx, dbias, dalpha, dlast, moment, moment / jnp.sqrt(square)

layer = {"unit": unit, "upsampling": upsampling}[sys.argv[1]]
length, width, out, taps = map(int, sys.argv[2:])
x, kernel = shape(16, length, width), shape(taps, width, out)
args = (x, shape(width), shape(width, dtype=jnp.float32), kernel, shape(out))
args = (*args, jax.eval_shape(layer, *args).update(sharding=here), shape(*kernel.shape, dtype=jnp.float32))
compiled = jax.jit(gradient).trace(*args).lower(lowering_platforms=("cuda",)).compile()
found = dict(
    temporaries=compiled.memory_analysis().temp_size_in_bytes,
    signal=x.size * x.dtype.itemsize,
    transposes=compiled.as_text().count(" transpose("),
)
print(json.dumps(found))
"""


def _planned(*arguments):
    target = plannable("h200:1x1")
    done = subprocess.run(
        [sys.executable, "-c", _COMPILED, *map(str, arguments)],
        env={**os.environ, **target.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("length", "width"), [(65536, 128), (32768, 128), (8192, 256)])  # the widest of base.py
def test_a_units_gradient_stores_only_its_signals(length, width):
    """The float32 sine is not kept. Of the kernel's gradient, only the result is transposed."""
    found = _planned("unit", length, width, width, 7)
    assert found["temporaries"] < 2.1 * found["signal"]  # Snake's output, and its cotangent
    assert found["transposes"] <= 2  # the kernel, and its gradient


def test_an_upsamplings_kernel_is_transposed_once():
    """And once more for cuDNN. The same holds for its gradient, which weight norm reads more than once."""
    assert _planned("upsampling", 2048, 512, 256, 8)["transposes"] <= 4
