"""The order of computation on CPUs.

XLA's own order keeps more arrays alive than necessary. On accelerators XLA schedules by memory use, and nothing here
has an effect.
"""

import jax
import jax.numpy as jnp
from jax import lax


def after(x: jax.Array, earlier: jax.Array) -> jax.Array:
    """Return `x`, scheduled after `earlier` on CPUs.

    Args:
      x: a floating-point array.
      earlier: a non-empty array, which gets no gradient.
    """

    def wait(x, earlier):
        # The factor is always one, but XLA cannot detect that. It removes optimization barriers before it schedules.
        bits = lax.bitcast_convert_type(earlier.reshape(-1)[0].astype(jnp.float32), jnp.int32)
        return x * (1 + jnp.minimum(jnp.maximum(bits, 0), 0)).astype(x.dtype)

    return lax.platform_dependent(x, lax.stop_gradient(earlier), cpu=wait, default=lambda x, _: x)
