"""Resolve `${...}` in a composed tree as OmegaConf does.

Interpolations of the environment and the clock are not resolved.
"""

import re
from typing import Any

from audiovae_jax.errors import ConfigError
from audiovae_jax.torch_io.migration import yaml_files

_INNERMOST = re.compile(r"(?<!\\)\$\{([^${}]*)\}")
_INDEX = re.compile(r"\[([^\]]*)\]")
_MAX_VALUES = 100_000  # per tree; nested references to lists can expand to billions of values


class Unresolved(str):
    """The original text of a value that cannot be resolved from the files."""


def resolve(values: dict[str, Any]) -> dict[str, Any]:
    """Replace every interpolation in `values`.

    Values that cannot be resolved become `Unresolved`.

    Raises:
      ConfigError: keys refer to each other in a cycle, or the tree expands to too many values.
    """
    try:
        return _Resolver(values).section(values, ())
    except RecursionError as error:
        raise ConfigError("keys refer to each other too deeply to be resolved") from error


class _Resolver:
    def __init__(self, root):
        self._root = root
        self._within: list[tuple[str, ...]] = []
        self._left = _MAX_VALUES

    def section(self, value, path):
        self._left -= 1
        if self._left < 0:
            raise ConfigError(f"{'.'.join(path)} expands to more than {_MAX_VALUES} values, too many for a config")
        if isinstance(value, dict):
            return {key: self.section(entry, (*path, key)) for key, entry in value.items()}
        if isinstance(value, list):
            return [self.section(entry, (*path, str(i))) for i, entry in enumerate(value)]
        if isinstance(value, str) and "${" in value:
            return self._text(value, path)
        return value

    def _text(self, text, path):
        if path in self._within:
            chain = " -> ".join(".".join(part) for part in [*self._within[self._within.index(path) :], path])
            raise ConfigError(f"keys refer to each other in a circle: {chain}")
        self._within.append(path)
        try:
            return self._filled_in(text, path)
        finally:
            self._within.pop()

    def _filled_in(self, text, path):
        original = text
        while (match := _INNERMOST.search(text)) is not None:
            value = self._reference(match[1].strip(), path)
            if isinstance(value, Unresolved):
                return Unresolved(original)
            if match[0] == text:
                return value
            if isinstance(value, (dict, list)):
                return Unresolved(original)
            text = text[: match.start()] + str(value) + text[match.end() :]
            if len(text) > 10_000:
                raise ConfigError(f"{'.'.join(path)} grows without end: {original}")
        return text.replace("\\${", "${")

    def _reference(self, name, path):
        resolver, colon, rest = name.partition(":")
        if colon:
            given = [part.strip() for part in rest.split(",", 1)]
            if resolver == "oc.select":
                value = self._look_up(given[0], path)
                if not isinstance(value, Unresolved):
                    return value
            if resolver in ("oc.select", "oc.env") and len(given) == 2:
                return yaml_files.parse(given[1], ".".join(path))
            return Unresolved(name)
        return self._look_up(name, path)

    def _look_up(self, name, path):
        dots = len(name) - len(name.lstrip("."))
        base = path[: len(path) - dots] if dots else ()
        if dots > len(path):
            return Unresolved(name)
        keys = [*base, *filter(None, _INDEX.sub(r".\1", name[dots:]).split("."))]
        value: Any = self._root
        for i, key in enumerate(keys):
            if isinstance(value, str) and "${" in value:
                value = self._text(value, tuple(keys[:i]))
            if isinstance(value, list) and key.isdigit() and int(key) < len(value):
                value = value[int(key)]
            elif isinstance(value, dict) and key in value:
                value = value[key]
            else:
                return Unresolved(name)
        if isinstance(value, str) and "${" in value:
            return self._text(value, tuple(keys))
        if isinstance(value, (dict, list)):
            if tuple(keys) == path[: len(keys)]:
                raise ConfigError(f"keys refer to each other in a circle: {'.'.join(path)} is a part of {name}")
            return self._whole(value, tuple(keys))
        return value

    def _whole(self, value, keys):
        if keys in self._within:
            raise ConfigError(f"keys refer to each other in a circle: {'.'.join(keys)}")
        self._within.append(keys)
        try:
            return self.section(value, keys)
        finally:
            self._within.pop()
