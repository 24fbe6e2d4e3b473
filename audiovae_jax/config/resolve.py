"""Build objects that a config names by dotted path.

`_target_` is the dotted path. The other keys of its section are the arguments.
"""

import difflib
import functools
import importlib
import inspect
import sys
from collections.abc import Mapping
from typing import Any

from audiovae_jax.errors import ConfigError

TARGET = "_target_"


def resolve(name: str, where: str) -> Any:
    """Return the object at the dotted path `name`.

    Args:
      name: e.g. `audiovae_jax.losses.waveform_l1` or `my_module.MyDiscriminator`.
      where: config key of the section, for error messages.

    Raises:
      ConfigError: the module or the name does not exist, or importing the module fails.
    """
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        raise ConfigError(f"{where}.{TARGET}={name!r} must be a dotted path such as package.module.{name or 'Name'}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise ConfigError(
                f"{where}.{TARGET}={name!r}: there is no module {error.name!r}; "
                "put its folder on PYTHONPATH, or run from the folder that contains it"
            ) from error
        raise ConfigError(f"{where}.{TARGET}={name!r}: importing {module_name!r} failed: {error}") from error
    except Exception as error:
        raise ConfigError(
            f"{where}.{TARGET}={name!r}: importing {module_name!r} failed: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, attribute):
        raise ConfigError(
            f"{where}.{TARGET}={name!r}: module {module_name!r} has no {attribute!r}"
            + did_you_mean(attribute, dir(module))
        )
    return getattr(module, attribute)


def build(section: Mapping, where: str, ignore: tuple[str, ...] = ()) -> Any:
    """Build the object that `section` describes.

    A class is instantiated. A function is returned with its options bound.

    Args:
      section: `_target_` and the arguments.
      where: config key of the section, for error messages.
      ignore: keys of the section that are not arguments.

    Raises:
      ConfigError: `_target_` is missing or invalid, or an argument does not match the signature.
    """
    if TARGET not in section:
        raise ConfigError(f"{where} has no {TARGET}: give the dotted path of the class or function to use")
    target = resolve(section[TARGET], where)
    if not callable(target):
        raise ConfigError(f"{where}.{TARGET}={section[TARGET]!r} is a {type(target).__name__}, not a class or function")
    arguments = {key: _plain(value) for key, value in section.items() if key != TARGET and key not in ignore}
    if not inspect.isclass(target):
        check_arguments(target, arguments, where, complete=False)
        return functools.partial(target, **arguments)
    check_arguments(target, arguments, where)
    try:
        return target(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {section[TARGET]} rejects its arguments: {error}") from error


def dotted_name(cls: type) -> str:
    """Return a class's shortest dotted path, via a package that re-exports it if any."""
    parts = cls.__module__.split(".")
    for i in range(1, len(parts) + 1):
        package = ".".join(parts[:i])
        if getattr(sys.modules.get(package), cls.__name__, None) is cls:
            return f"{package}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def named_parameters(target) -> dict[str, inspect.Parameter]:
    """Return the parameters of `target` that a config can set.

    If the function has an attribute `forwards_to`, its `**options` are the keyword arguments of that function.
    """
    parameters = dict(inspect.signature(target).parameters)
    if (forwards_to := getattr(target, "forwards_to", None)) is not None:
        parameters = {**inspect.signature(forwards_to).parameters, **parameters}
    return {
        name: p
        for name, p in parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name not in ("parent", "name")  # linen's own
    }


def check_arguments(target, arguments: Mapping, where: str, complete: bool = True):
    """Raise ConfigError unless `arguments` match the signature of `target`.

    For an unknown argument the message gives the nearest name.

    Args:
      target: a class or function.
      arguments: the keyword arguments.
      where: config key of the section, for error messages.
      complete: whether arguments without a default are required.
    """
    named = named_parameters(target)
    open_ended = not hasattr(target, "forwards_to") and any(
        p.kind is p.VAR_KEYWORD for p in inspect.signature(target).parameters.values()
    )
    for key in arguments:
        if key not in named and not open_ended:
            raise ConfigError(
                f"{where}.{key}: {target.__module__}.{target.__qualname__} has no argument {key!r}"
                f"{did_you_mean(key, named)} (its arguments are {', '.join(named)})"
            )
    if complete:
        for n, p in named.items():
            if p.default is p.empty and n not in arguments:
                raise ConfigError(f"{where}: {target.__module__}.{target.__qualname__} needs the argument {n!r}")


def did_you_mean(name: str, names) -> str:
    """Return `"; did you mean 'x'?"`, or an empty string if no name is similar."""
    near = difflib.get_close_matches(name, [n for n in names if not n.startswith("__")], n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _plain(value):
    """Convert config values to plain Python types.

    Classes then do not depend on ml_collections.
    """
    if isinstance(value, Mapping) or hasattr(value, "to_dict"):
        return {key: _plain(v) for key, v in dict(value).items()}
    if isinstance(value, (list, tuple)):
        return tuple(_plain(v) for v in value)
    return value
