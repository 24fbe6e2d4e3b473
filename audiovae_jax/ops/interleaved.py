"""Several arrays of one shape, stored as one array.

This saves splitting and joining the arrays and their gradients.
"""

import functools

import jax


@functools.partial(jax.tree_util.register_dataclass, data_fields=["array"], meta_fields=["parts"])
class Interleaved:
    """`parts` arrays `[b, ...]` in one: array `i` is `array[i::parts]`.

    Attributes:
      array: `[b * parts, ...]`.
      parts: number of interleaved arrays.
    """

    def __init__(self, array, parts: int):
        self.array, self.parts = array, parts

    def split(self) -> list:
        """Return the `parts` arrays."""
        return [self.array[i :: self.parts] for i in range(self.parts)]


def is_interleaved(x) -> bool:
    """Return whether `x` is `Interleaved`; for `is_leaf` of `jax.tree.leaves`."""
    return isinstance(x, Interleaved)
