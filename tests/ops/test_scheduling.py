import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiovae_jax.ops import scheduling

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere XLA orders by memory already")


def _branches(x, in_turn):
    """Six branches that read the same input, each with arrays of a MB. XLA fuses no transforms."""
    sums = []
    for i in range(6):
        given = scheduling.after(x, sums[-1]) if in_turn and sums else x
        y = jnp.fft.rfft(jnp.outer(given, given) + i)
        sums.append(jnp.sum(jnp.fft.irfft(y * jnp.abs(y))[::3]))
    return jnp.stack(sums)


@on_cpu
def test_later_work_is_not_started_early():
    x = jnp.linspace(-1.0, 1.0, 512)
    at_once, in_turn = (jax.jit(lambda x, wait=wait: _branches(x, wait)).lower(x).compile() for wait in (False, True))
    planned = [compiled.memory_analysis().temp_size_in_bytes for compiled in (at_once, in_turn)]
    assert planned[1] < 0.5 * planned[0], planned
    np.testing.assert_array_equal(at_once(x), in_turn(x))


@pytest.mark.parametrize("earlier", [1.0, -1.0, 0.0, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scheduling_changes_no_value(earlier, dtype):
    x = jnp.asarray([1.5, -2.0, 0.0, -0.0, jnp.inf, jnp.nan], dtype)
    earlier = jnp.full((2, 3), earlier, dtype)
    y = jax.jit(scheduling.after)(x, earlier)
    assert y.dtype == dtype
    y, x = (np.asarray(array, np.float32) for array in (y, x))
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(np.signbit(y), np.signbit(x))


def test_no_gradient_goes_to_what_is_waited_for():
    x, earlier = jnp.asarray([1.0, 2.0]), jnp.ones(3)
    to_x, to_earlier = jax.jit(jax.grad(lambda *args: jnp.sum(scheduling.after(*args) ** 2), argnums=(0, 1)))(
        x, earlier
    )
    np.testing.assert_array_equal(to_x, 2 * x)
    np.testing.assert_array_equal(to_earlier, np.zeros(3))
