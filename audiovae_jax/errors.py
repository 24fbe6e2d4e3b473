"""Errors that a user can fix. Each names the file or key, and a remedy."""

import contextlib
import math
import numbers
import operator
from pathlib import Path
from typing import Any

import numpy as np


class UserError(Exception):
    """Base of the errors below; scripts print it without a traceback.

    The message is `KEY=PATH`, directly followed by the problem and then by `: DETAIL`. Parts that are not given are
    left out.

    Args:
      problem: the problem and its remedy. After a path it begins with a space or a colon: " is damaged".
      path: the file, folder or URL with the problem.
      key: the config key that named the path.
      detail: the reason as another library words it. It may contain any path.

    Attributes:
      problem, path, key, detail: see the arguments.
    """

    def __init__(self, problem: str = "", *, path: Any = None, key: str | None = None, detail: Any = None):
        super().__init__(problem)
        self.problem, self.path, self.key, self.detail = problem, path, key, detail

    def __str__(self) -> str:
        start = "" if self.path is None else f"{self.path}" if self.key is None else f"{self.key}={self.path}"
        return f"{start}{self.problem}" + ("" if self.detail is None else f": {self.detail}")


class ConfigError(UserError, ValueError):
    """A config key or value that is unknown, invalid, or incompatible with others."""


class DataError(UserError):
    """Audio that cannot be used."""


class RootError(DataError):
    """A root of `config.data` that cannot be used. Its path is the root as given."""

    def __init__(self, root: str, reason: str):
        super().__init__(f": {reason}", path=root, key="config.data.root")


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another run."""


class TrainingError(UserError):
    """A run that cannot continue."""


class StuckError(TrainingError):
    """A process of the run makes no progress."""


class PlanError(UserError):
    """A program that could not be compiled for the planned target."""


@contextlib.contextmanager
def as_checkpoint_error(problem: str, path: Any = None):
    """A context that converts exceptions, except user errors, to CheckpointError.

    Args:
      problem, path: see `UserError`. The exception's type and text are appended to the problem.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{problem} ({type(error).__name__}: {text})"[:1000], path=path) from error


@contextlib.contextmanager
def naming(path: Any, key: str | None = None):
    """A context that adds `path` to checkpoint errors that name no path.

    Args:
      path: the file, folder or URL that the context works on.
      key: the config key that gave the path. It is added to errors that name no key.
    """
    try:
        yield
    except CheckpointError as error:
        if error.path is None:
            error.path, error.problem = path, f": {error.problem}"
        error.key = error.key or key
        raise


def printable(path: str | Path) -> str:
    """Return a path as printable text; bytes that are not UTF-8 are escaped."""
    return str(path).encode(errors="backslashreplace").decode()


def whole_number(value: Any, name: str, error: type[Exception], *, least: int = 1, most: int = 2**40 - 1) -> int:
    """Return `value` as an int.

    Args:
      value: an integer of Python, numpy or jax, or a float without a fractional part.
      name: name of the value, for the error.
      error: type of the error to raise.
      least, most: the allowed range, both ends included.

    Raises:
      error: the value is not an integer, or is out of range.
    """
    number = None
    if not isinstance(value, bool | str | bytes | np.bool_):
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


def require_range(name: str, value: float, *, above: float | None = None, below: float | None = None):
    """Raise ValueError unless `value` is a finite number in range.

    Without `above`, the value must be at least 0. Traced values pass: they were checked before they were traced.
    """
    import jax  # imported late, since commands that only read a file's header do not need it

    if isinstance(value, jax.core.Tracer):
        return
    value = value.item() if isinstance(value, jax.Array) and value.ndim == 0 else value
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise ValueError(f"{name}={value!r} must be a finite number")
    if above is not None and value <= above:
        raise ValueError(f"{name}={value} must be above {above:g}")
    if above is None and value < 0:
        raise ValueError(f"{name}={value} must not be negative")
    if below is not None and value >= below:
        raise ValueError(f"{name}={value} must be below {below:g}")
