"""Read YAML as OmegaConf does, restricted to plain values."""

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from audiovae_jax.errors import ConfigError

_LARGEST_FILE = 1 << 20  # bytes
_MAX_VALUES = 20_000  # per file; nested aliases can expand to billions of values
_PACKAGE = re.compile(r"#\s*@package\s+(\S+)\s*$")


class _Loader(yaml.SafeLoader):
    """A loader that reads 1e-4 as a number and dates as text, and rejects duplicates."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.tag.endswith(":merge"):
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a string", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} occurs twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read(path: Path) -> tuple[dict[str, Any], str | None]:
    """Return the values and the package of a YAML file.

    The package is from a line `# @package NAME`, otherwise None.

    Raises:
      ConfigError: the file is missing, is not YAML, or does not contain a mapping.
    """
    try:
        content = path.read_bytes()
        if len(content) > _LARGEST_FILE:
            raise ConfigError(f"{path} has {len(content)} bytes, too many for a config")
        text = content.decode()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    values = parse(text, str(path))
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} contains a {type(values).__name__} instead of keys with values")
    package = next(filter(None, map(_PACKAGE.match, _leading_comments(text))), None)
    return values, package[1] if package else None


def parse(text: str, where: str) -> Any:
    """Parse YAML.

    Args:
      text: the YAML source.
      where: name of the source, for error messages.

    Raises:
      ConfigError: the text is not YAML, or it expands to too many values.
    """
    try:
        values = yaml.load(text, _Loader)  # a SafeLoader, so object tags are errors
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).split("\n")[0]
        raise ConfigError(f"{where}{place}: invalid YAML: {problem}") from error
    except (RecursionError, ValueError, OverflowError) as error:
        raise ConfigError(f"{where}: invalid YAML: {type(error).__name__}: {error}") from error
    return _copied(values, where, [_MAX_VALUES])


def _leading_comments(text):
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            return
        yield line.strip()


def _copied(value, where, left):
    """Copy a value without aliases, limited to `left[0]` values."""
    left[0] -= 1
    if left[0] < 0:
        raise ConfigError(f"{where} expands to more than {_MAX_VALUES} values, too many for a config")
    if isinstance(value, dict):
        return {str(key): _copied(entry, where, left) for key, entry in value.items()}
    if isinstance(value, list):
        return [_copied(entry, where, left) for entry in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
