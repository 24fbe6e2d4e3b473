"""Convert an old tree of configs to a config file, with a list of changed keys."""

import dataclasses
from pathlib import Path

import ml_collections

from audiovae_jax.config import configuration
from audiovae_jax.errors import ConfigError, printable
from audiovae_jax.storage import atomic
from audiovae_jax.torch_io.migration import assemble, hydra_tree, interpolation, sections
from audiovae_jax.torch_io.migration.findings import Findings

_MAX_VALUE = 60  # maximum number of characters shown of an old value
_PLAIN = str.maketrans({'"': "'", "\\": "/"})


@dataclasses.dataclass(frozen=True)
class Migration:
    """The result of migrating an old tree.

    Attributes:
      files: the files that were read.
      statements: lines of Python that turn the config of `configs/base.py` into the migrated one.
      changed: `KEY: remark` of keys that were converted and have another meaning now.
      dropped: `KEY=VALUE: reason` of keys without a counterpart.
    """

    files: tuple[Path, ...]
    statements: tuple[str, ...]
    changed: tuple[str, ...]
    dropped: tuple[str, ...]


def migrate(files: list[Path], overrides: list[str], reference: ml_collections.ConfigDict) -> Migration:
    """Read an old tree and convert it.

    Args:
      files, overrides: see `hydra_tree.compose`.
      reference: the base config.

    Raises:
      ConfigError: a file cannot be read, or the tree cannot be composed.
    """
    tree = hydra_tree.compose(files, overrides)
    found = Findings()
    sections.take(interpolation.resolve(tree.values), "", found)
    assemble.complete(found, reference)
    missing = [f"{name}: it is optional, and does not exist" for name in tree.missing]
    return Migration(
        files=tuple(tree.files),
        statements=tuple(assemble.statements(found, reference)),
        changed=tuple(_line(f"{key}: {remark}") for key, remark in found.changed),
        dropped=tuple([_line(f"{key}{_short(value)}: {reason}") for key, value, reason in found.dropped] + missing),
    )


def write(migration: Migration, path: Path, reference: ml_collections.ConfigDict):
    """Write a migration as a config file, and check that the config is valid.

    Args:
      migration: the migration to write.
      path: the file to create or replace.
      reference: the base config.

    Raises:
      ConfigError: the values are incompatible, or the file cannot be written.
    """
    try:
        with atomic.replacing(path) as temporary:
            temporary.write_text(_source(migration), encoding="utf-8")
            config = configuration.load_module(temporary).get_config()
            configuration.check(configuration.finalize(config, reference), device_count=1)
    except ConfigError as error:
        raise ConfigError(
            f"{error}\nnothing was written; give an old key another value on the command line with KEY=VALUE"
        ) from error
    except OSError as error:
        raise ConfigError(f"{printable(path)} was not written: {error.strerror or error}") from error


def _source(migration):
    first, others = _line(printable(migration.files[0].name)), len(migration.files) - 1
    origin = first.translate(_PLAIN) + (f" and {others} files that belong to it" if others else "")
    remarks = []
    for title, lines in (("No counterpart", migration.dropped), ("Converted, with another meaning", migration.changed)):
        if lines:
            remarks += [f"# {title}:", *(f"#   {line}" for line in lines)]
    body = migration.statements or ("pass",)
    lines = [
        f'"""Converted by migrate_config from {origin}."""',
        "",
        *(["import ml_collections", ""] if any("ml_collections." in line for line in body) else []),
        "from configs import base",
        "",
        *remarks,
        "",
        "",
        "def override(config):",
        *(f"    {line}" for line in body),
        "",
        "",
        'def get_config(names=""):',
        "    config = base.get_config(names)",
        "    override(config)",
        "    return config",
    ]
    return "\n".join(lines) + "\n"


def _line(text):
    return " ".join(printable(text).split())


def _short(value):
    text = "" if value is None else f"={value}"
    return text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 3] + "..."
