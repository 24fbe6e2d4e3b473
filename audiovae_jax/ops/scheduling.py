"""In which order a CPU computes, where XLA's own order holds more arrays at one time than it needs to.

XLA orders what an accelerator runs by the memory that it takes, and there nothing here does anything.
"""

import jax
import jax.numpy as jnp
from jax import lax


def after(x: jax.Array, earlier: jax.Array) -> jax.Array:
    """`x`, on a CPU once `earlier` is known, whatever it is; no gradient goes there.

    Args:
      x: an array of floating point.
      earlier: another, not empty.
    """

    def wait(x, earlier):
        # Always one, which XLA does not find out. Barriers it takes out before it orders.
        bits = lax.bitcast_convert_type(earlier.reshape(-1)[0].astype(jnp.float32), jnp.int32)
        return x * (1 + jnp.minimum(jnp.maximum(bits, 0), 0)).astype(x.dtype)

    return lax.platform_dependent(x, lax.stop_gradient(earlier), cpu=wait, default=lambda x, _: x)
