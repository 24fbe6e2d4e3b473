"""Add losses by name, for flags `--config.losses.NAME.KEY=VALUE`."""

import inspect
from collections.abc import Iterable

import ml_collections
from ml_collections import config_dict

from audiovae_jax import losses
from audiovae_jax.config.configuration import has_key
from audiovae_jax.config.resolve import TARGET, did_you_mean, named_parameters, resolve
from audiovae_jax.errors import ConfigError


def names() -> list[str]:
    """Return the names of all losses in `audiovae_jax.losses`.

    A loss is a function of a prediction and a target.
    """
    functions = {name: value for name, value in vars(losses).items() if inspect.isfunction(value)}
    return [
        name for name, function in functions.items() if {"prediction", "target"} <= named_parameters(function).keys()
    ]


def declare(config: ml_collections.ConfigDict, keys: Iterable[str]):
    """Add missing loss keys with their defaults, so that flags can set them.

    A loss without a section gets a new one. If the loss has a sample rate, it refers to `config.data.sample_rate`.

    Args:
      config: modified in place.
      keys: keys of the form `losses.NAME.KEY`; other keys are ignored.

    Raises:
      ConfigError: the loss does not exist, or it lacks the option.
    """
    for key in keys:
        section, _, rest = key.partition(".")
        if section != "losses" or "losses" not in config or has_key(config, key):
            continue
        name, _, option = rest.partition(".")
        if not option:
            raise ConfigError(f"config.{key} is a section of keys; give config.{key}.weight, for instance 1.0")
        if name not in config.losses:
            config.losses[name] = _section(config, name)
        if not has_key(config, key):
            config.losses[name][option] = _default(config.losses[name], f"config.losses.{name}", option)


def _section(config, name):
    known = names()
    if name not in known:
        near = did_you_mean(name, [*config.losses, *known])
        raise ConfigError(f"config.losses has no {name!r}{near}; audiovae_jax.losses contains {', '.join(known)}")
    section = ml_collections.ConfigDict({TARGET: f"{losses.__name__}.{name}"})
    if "sample_rate" in named_parameters(getattr(losses, name)) and has_key(config, "data.sample_rate"):
        section.sample_rate = config.data.get_ref("sample_rate")
    return section


def _default(section, where, option):
    target = section.get(TARGET, "")
    parameters = named_parameters(resolve(target, where))
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    options = {"weight": 1.0, **defaults}
    if option not in options:
        near = did_you_mean(option, options)
        raise ConfigError(f"{where}: {target} has no option {option!r}{near}; its options are {', '.join(options)}")
    default = options[option]
    takes_a_name = option in parameters and parameters[option].annotation == bool | str
    if default is None or takes_a_name:
        return config_dict.FieldReference(default, field_type=object)
    return default
