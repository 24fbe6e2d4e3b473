"""Whole numbers, of whatever type a caller has them."""

import operator
from typing import Any


def whole_number(value: Any, name: str, error: type[Exception], *, least: int = 1, most: int = 2**40 - 1) -> int:
    """`value` as an int: Python's, numpy's or jax's integers, and floats that are whole.

    Args:
      value: the number.
      name: what it is, for the error.
      error: what to raise.
      least, most: the range it must lie in.

    Raises:
      error: it is none, or out of range.
    """
    number = None
    if not isinstance(value, bool | str | bytes):
        try:
            number = operator.index(value)
        except TypeError:
            try:
                number = int(value) if float(value).is_integer() else None
            except (TypeError, ValueError, OverflowError):
                number = None
    if number is None:
        raise error(f"{name}={value!r} must be a whole number")
    if not least <= number <= most:
        raise error(f"{name}={number} must be a whole number from {least} to {most}")
    return number
