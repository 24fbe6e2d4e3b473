"""Compose a tree of Hydra configs: defaults lists, packages, overrides."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from audiovae_jax.config.resolve import did_you_mean
from audiovae_jax.errors import ConfigError
from audiovae_jax.torch_io.migration import yaml_files

_MAX_ROUNDS = 10  # maximum number of composition rounds; in each, `override` entries may change choices
_CHOICE = re.compile(r"\$\{([\w/.]+)\}")


@dataclasses.dataclass
class Tree:
    """A composed tree of configs.

    Attributes:
      values: nested values, with unresolved interpolations.
      files: the files, in the order in which they were read.
      missing: optional configs that do not exist.
    """

    values: dict[str, Any]
    files: list[Path]
    missing: list[str]


@dataclasses.dataclass(frozen=True)
class _Entry:
    """An entry of a defaults list.

    `group` is None for a config that is named directly.
    """

    group: str | None
    options: tuple[str, ...]
    package: str | None
    optional: bool
    override: bool


def compose(files: list[Path], overrides: list[str]) -> Tree:
    """Compose configs as Hydra does.

    Args:
      files: the primary config, whose folder is the configs' root, and further files. A further file in a folder under
        the root is chosen for its group. Any other file is merged; later files take precedence.
      overrides: overrides in Hydra's syntax: `key.sub=value`, `group=option`, `~key`.

    Raises:
      ConfigError: a file is missing or is not YAML, a defaults list cannot be followed, or an override is invalid.
    """
    root = files[0].absolute().parent
    primaries, choices = [files[0]], {}
    for file in files[1:]:
        inside = file.absolute().is_relative_to(root) and file.absolute().parent != root
        if inside and not file.is_file():
            raise ConfigError(f"{file} cannot be read: there is no such file")
        if inside:
            choices[file.absolute().parent.relative_to(root).as_posix()] = (file.stem,)
        else:
            primaries.append(file)
    assignments = []
    for override in overrides:
        _sort_override(override, root, choices, assignments)
    for _ in range(_MAX_ROUNDS):
        composer = _Composer(root, choices, {"/".join(path): value for path, value in assignments})
        values: dict[str, Any] = {}
        for file in primaries:
            _merge(values, composer.config(file, group="", package=""))
        # Choices for groups that appear in no defaults list.
        for group in sorted(group for group in choices.keys() - composer.chosen.keys() if choices[group]):
            _merge(values, composer.choice(group, _Entry(group, choices[group], None, False, False), "", ""))
        if composer.choices == choices:
            break
        choices = composer.choices
    else:
        raise ConfigError(f"{files[0]}: the defaults lists override one another in a cycle")
    for path, value in assignments:
        if "/".join(path) not in composer.chosen:
            _assign(values, path, value)
    return Tree(values, composer.files, composer.missing)


class _Composer:
    """One pass over the defaults lists.

    Args:
      root: folder of the configs.
      given: choices by group.
      assigned: assigned values by key. An assignment to a group of a defaults list is also a choice, since the PyTorch
        system's documentation uses this form (`model.discriminator=discriminator/lightweight`).
    """

    def __init__(self, root, given, assigned):
        self._root, self._given, self._assigned = root, given, assigned
        self.choices = dict(given)
        self.chosen: dict[str, tuple[str, ...]] = {}
        self.files: list[Path] = []
        self.missing: list[str] = []
        self._within: list[Path] = []

    def config(self, file, group, package):
        """Return the values of a config file and its defaults, nested under its package."""
        if file in self._within:
            chain = " -> ".join(_shown(path, self._root) for path in [*self._within, file])
            raise ConfigError(f"the defaults lists form a circle: {chain}")
        values, header = yaml_files.read(file)
        if file not in self.files:
            self.files.append(file)
        if header not in (None, "_group_"):
            package = _joined(package.rpartition(".")[0] if group else package, header)
        defaults = values.pop("defaults", [])
        if not isinstance(defaults, list):
            raise ConfigError(f"{file}: defaults must be a list, not {defaults!r}")
        if "_self_" not in defaults:
            defaults = [*defaults, "_self_"]
        made: dict[str, Any] = {}
        self._within.append(file)
        for raw in defaults:
            if raw == "_self_":
                _merge(made, _placed(values, package))
                continue
            entry = _parse_entry(raw, file)
            name = (entry.group or "").lstrip("/")
            if name == "hydra" or name.startswith("hydra/"):
                continue
            if entry.override:
                self.choices.setdefault(name if entry.group.startswith("/") else _under(group, name), entry.options)
            elif entry.group is None:
                _merge(made, self._named(entry, group, package, file))
            else:
                _merge(made, self.choice(_group_path(group, entry.group), entry, package, file))
        self._within.pop()
        return made

    def choice(self, group, entry, package, file):
        """Return the merged values of a group's chosen options."""
        options = self._given.get(group, entry.options)
        if isinstance(self._assigned.get(group), str):
            options = (self._assigned[group],)
        self.chosen[group] = options
        own = (entry.group or group).lstrip("/").replace("/", ".")
        made: dict[str, Any] = {}
        for option in options:
            option = self._filled_in(option, file)
            found = self._locate(group, option)
            if found is None:
                if entry.optional:
                    self.missing.append(f"{group}: {option}")
                    continue
                raise ConfigError(f"{file}: defaults: {group}: {option}: {self._nothing_there(group, option)}")
            place = _joined(package, own if entry.package is None else entry.package)
            _merge(made, self.config(found, group, place))
        return made

    def _named(self, entry, group, package, file):
        made: dict[str, Any] = {}
        for option in entry.options:
            folder, _, name = option.rpartition("/")
            inside = folder.lstrip("/") if option.startswith("/") else _under(group, folder)
            found = self._file(_under(inside, name))
            if found is None:
                if entry.optional:
                    self.missing.append(option)
                    continue
                raise ConfigError(f"{file}: defaults: {option}: {self._nothing_there(inside, name)}")
            place = package if entry.package is None else _joined(package, entry.package)
            _merge(made, self.config(found, inside, place))
        return made

    def _locate(self, group, option):
        """Find an option's file; None if there is none.

        The places are the group, the folder next to it and the root. Hydra only searches the group. The PyTorch
        system's documentation uses the other two places.
        """
        for folder in (group, group.rpartition("/")[0], ""):
            found = self._file(_under(folder, option))
            if found is not None:
                return found
        return None

    def _file(self, name):
        name = name.removesuffix(".yaml").removesuffix(".yml")
        for suffix in (".yaml", ".yml"):
            path = self._root / f"{name}{suffix}"
            if path.is_file():
                if not path.resolve().is_relative_to(self._root.resolve()):
                    raise ConfigError(f"the defaults name {name}, which lies outside {self._root}")
                return path
        return None

    def _filled_in(self, option, file):
        """Replace `${group}` by the choice of that group."""

        def chosen(match):
            known = self.choices.get(match[1]) or self.chosen.get(match[1])
            if not known:
                raise ConfigError(f"{file}: defaults: {option}: the group {match[1]!r} has no choice")
            return known[0]

        return _CHOICE.sub(chosen, option)

    def _nothing_there(self, group, option):
        folder = self._root / group
        there = sorted(path.stem for path in folder.glob("*.y*ml")) if folder.is_dir() else []
        said = f"there is no {_under(group, option).removesuffix('.yaml')}.yaml under {self._root}"
        return f"{said}{did_you_mean(option, there)}" + (f"; there are {', '.join(there)}" if there else "")


def _parse_entry(raw, file) -> _Entry:
    optional = override = False
    if isinstance(raw, str):
        key, options, group = raw, None, None
    elif isinstance(raw, dict) and len(raw) == 1:
        ((key, options),) = raw.items()
        group = key
    else:
        raise ConfigError(f"{file}: defaults: {raw!r} is neither a config's name nor `group: option`")
    while True:
        word, _, rest = key.partition(" ")
        if word not in ("optional", "override") or not rest:
            break
        optional, override, key = optional or word == "optional", override or word == "override", rest.strip()
    key, _, package = key.partition("@")
    if group is None:
        return _Entry(None, (key,), package or None, optional, override)
    options = [] if options is None else options if isinstance(options, list) else [options]
    if "???" in options:
        raise ConfigError(f"{file}: defaults: {key} has no value (???); choose one with {key.lstrip('/')}=OPTION")
    return _Entry(key, tuple(map(str, options)), package or None, optional, override)


def _sort_override(override, root, choices, assignments):
    key, equals, value = override.partition("=")
    key = key.lstrip("+")
    if key.startswith("~"):
        assignments.append((key[1:].split("."), _DELETED))
        choices[key[1:].replace(".", "/")] = ()  # in case it is a group
        return
    if not equals or not key:
        raise ConfigError(f"{override!r} is neither a file nor KEY=VALUE")
    group = key.replace(".", "/")
    if "/" in key or (root / group).is_dir():
        choices[group.partition("@")[0]] = () if value in ("", "null") else (value,)
    else:
        assignments.append((key.split("."), yaml_files.parse(value, override)))


_DELETED = object()


def _assign(values, path, value):
    for part in path[:-1]:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    if value is _DELETED:
        values.pop(path[-1], None)
    else:
        values[path[-1]] = value


def _merge(into, values):
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _placed(values, package):
    for part in reversed([part for part in package.split(".") if part]):
        values = {part: values}
    return values


def _joined(package, own):
    """Join `own` to `package`.

    `_global_` starts at the root and `_here_` is `package` itself.
    """
    if own == "_here_":
        return package
    if own.startswith("_global_"):
        return own.removeprefix("_global_").lstrip(".")
    return ".".join(filter(None, (package, own)))


def _group_path(group, entry_group):
    return entry_group[1:] if entry_group.startswith("/") else _under(group, entry_group)


def _under(group, name):
    return "/".join(filter(None, (group, name)))


def _shown(path, root):
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
