"""Errors that a user can mend: each names the file or key, and what to do about it."""

import contextlib


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


class PlanError(UserError):
    """A program that could not be compiled for what it was to be planned for."""


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
