"""Errors that a user can mend: each names the file or key, and what to do about it."""


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
