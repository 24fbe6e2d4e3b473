"""Errors that a user can mend: each names the file or key, and what to do about it."""

import contextlib
import math
import numbers


class UserError(Exception):
    """Base of the errors below; scripts print it without a traceback."""


class ConfigError(UserError, ValueError):
    """A config key or value that cannot work."""


class DataError(UserError):
    """Audio that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another run."""


class TrainingError(UserError):
    """A run that cannot go on."""


def require_range(name: str, value: float, *, above: float | None = None, below: float | None = None):
    """Raise ValueError unless `value` is a finite number, at least 0, or above and below those given."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise ValueError(f"{name}={value!r} must be a finite number")
    if above is not None and value <= above:
        raise ValueError(f"{name}={value} must be above {above:g}")
    if above is None and value < 0:
        raise ValueError(f"{name}={value} must not be negative")
    if below is not None and value >= below:
        raise ValueError(f"{name}={value} must be below {below:g}")


@contextlib.contextmanager
def as_checkpoint_error(what: str):
    """Whatever goes wrong inside, other than a user's error, is a CheckpointError that begins with `what`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{what} ({type(error).__name__}: {text})"[:1000]) from error
