"""What XLA plans for a GPU of the forms that are there for its sake; skipped where its compiler is not installed."""

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
from audiovae_jax.ops.column_sum import add_bias
from audiovae_jax.ops.convolution import conv1d
from audiovae_jax.ops.snake import snake
from audiovae_jax.planning import compiling, targets
from audiovae_jax.training import mesh

here = mesh.replicated(mesh.make_mesh(compiling.find_devices(*targets.parse(["h200:1x1"]))))

def shape(*lengths, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(lengths, dtype, sharding=here)

def unit(x, bias, alpha, kernel, last_bias):
    return add_bias(conv1d(snake(add_bias(x, bias), alpha), kernel, padding=3), last_bias)

def gradient(x, bias, alpha, kernel, last_bias, cotangent, moment):
    y, pull_back = jax.vjp(unit, x, bias, alpha, kernel, last_bias)
    dx, dbias, dalpha, dkernel, dlast = pull_back(cotangent)
    moment = 0.9 * moment + 0.1 * dkernel.astype(jnp.float32)
    square = jnp.sum(jnp.square(dkernel.astype(jnp.float32)))
    return y, dx, dbias, dalpha, dlast, moment, moment / jnp.sqrt(square)

length, width = map(int, sys.argv[1:])
x, channels, kernel = shape(16, length, width), shape(width), shape(7, width, width)
args = (x, channels, shape(width, dtype=jnp.float32), kernel, channels, x, shape(7, width, width, dtype=jnp.float32))
compiled = jax.jit(gradient).trace(*args).lower(lowering_platforms=("cuda",)).compile()
found = dict(
    temporaries=compiled.memory_analysis().temp_size_in_bytes,
    signal=x.size * x.dtype.itemsize,
    transposes=compiled.as_text().count(" transpose("),
)
print(json.dumps(found))
"""


@pytest.mark.parametrize(("length", "width"), [(65536, 128), (32768, 128), (8192, 256)])  # the widest of base.py
def test_a_units_gradient_keeps_its_signals_alone(length, width):
    """Not the sine in float32, and nothing of a kernel's gradient is turned but itself."""
    target = plannable("h200:1x1")
    done = subprocess.run(
        [sys.executable, "-c", _COMPILED, str(length), str(width)],
        env={**os.environ, **target.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["temporaries"] < 2.1 * found["signal"]  # Snake's output, and its cotangent
    assert found["transposes"] <= 2  # the kernel, and its gradient
