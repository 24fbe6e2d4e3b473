"""Findings from an old config: new settings, changed meanings and dropped keys."""

import dataclasses
from collections.abc import Callable
from typing import Any

from audiovae_jax.torch_io.migration.interpolation import Unresolved

_HYDRA_OWN = ("_target_", "_partial_", "_recursive_", "_convert_")
UNKNOWN = "there is no counterpart"


@dataclasses.dataclass
class Findings:
    """Findings from an old config.

    Attributes:
      settings: values by the new config's flat keys.
      losses: the complete sections of `losses`, or None if the old config has no losses.
      discriminator: the discriminator's section, or None if it is an `EnCodecDiscriminator`.
      changed: `(old key, remark)` of keys that were converted and have another meaning now.
      dropped: `(old key, value, reason)` of keys that were not converted.
      sample_rates, channels: `{old key: value}` of settings that share one key in the new config.
      facts: values of old keys that are only meaningful together.
    """

    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    losses: dict[str, dict[str, Any]] | None = None
    discriminator: dict[str, Any] | None = None
    changed: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    dropped: list[tuple[str, Any, str]] = dataclasses.field(default_factory=list)
    sample_rates: dict[str, int] = dataclasses.field(default_factory=dict)
    channels: dict[str, int] = dataclasses.field(default_factory=dict)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


class Section:
    """A section of the old tree, from which keys are taken one by one.

    Args:
      values: keys and values of the section.
      path: dotted path of the section, "" for the root.
      found: receives the keys that cannot be converted.
    """

    def __init__(self, values: dict[str, Any], path: str, found: Findings):
        self._left = {key: value for key, value in values.items() if key not in _HYDRA_OWN}
        self.path, self._found = path, found
        self.target: str = values.get("_target_") if isinstance(values.get("_target_"), str) else ""

    def key(self, name: str) -> str:
        """Return the full dotted path of the key `name`."""
        return f"{self.path}.{name}" if self.path else name

    def number(self, name: str, default=None):
        """Take a number."""
        return self._take(name, default, lambda v: isinstance(v, (int, float)) and not isinstance(v, bool), "a number")

    def whole(self, name: str, default=None):
        """Take a whole number."""

        def is_whole(value):
            return isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value)

        value = self._take(name, default, is_whole, "a whole number")
        return value if value is default else int(value)

    def flag(self, name: str, default=None):
        """Take true or false."""
        return self._take(name, default, lambda v: isinstance(v, bool), "true or false")

    def text(self, name: str, default=None):
        """Take a string."""
        return self._take(name, default, lambda v: isinstance(v, str), "a text")

    def numbers(self, name: str, default=None):
        """Take a list of numbers, as a tuple."""

        def are_numbers(value):
            return isinstance(value, list) and all(
                isinstance(entry, (int, float)) and not isinstance(entry, bool) for entry in value
            )

        value = self._take(name, default, are_numbers, "a list of numbers")
        return tuple(value) if isinstance(value, list) else value

    def whatever(self, name: str, default=None):
        """Take a value of any kind."""
        return self._take(name, default, lambda value: True, "")

    def drop(self, reasons: dict[str, str]):
        """Take keys without a counterpart and record the reason for each."""
        for name, reason in reasons.items():
            if name in self._left:
                self._drop(name, self._left.pop(name), reason)

    def remark(self, remarks: dict[str, str]):
        """Take keys whose counterpart is not a config key and record a remark for each."""
        for name, remark in remarks.items():
            if self._left.pop(name, None) is not None:
                self._found.changed.append((self.key(name), remark))

    def ignore(self, *names: str):
        """Take keys without recording anything."""
        for name in names:
            self._left.pop(name, None)

    def sections(self) -> list[tuple[str, dict[str, Any]]]:
        """Take all values that are sections themselves."""
        inner = [(name, value) for name, value in self._left.items() if isinstance(value, dict)]
        for name, _ in inner:
            del self._left[name]
        return inner

    def end(self, reason: Callable[[str], str] = lambda name: UNKNOWN):
        """Drop the remaining keys, each with a reason."""
        for name in list(self._left):
            value = self._left.pop(name)
            if value is not None:
                self._drop(name, value, reason(name))

    def leave(self):
        """Discard the remaining keys silently, since a remark covers the whole section."""
        self._left.clear()

    def _take(self, name, default, fits, kind):
        value = self._left.pop(name, None)
        if value is None:
            return default
        if isinstance(value, Unresolved):
            self._drop(name, value, "it refers to a key that the given files do not define")
        elif value == "???":
            self._drop(name, value, "it has no value (???)")
        elif not fits(value):
            self._drop(name, value, f"it is not {kind}")
        else:
            return value
        return default

    def _drop(self, name, value, reason):
        self._found.dropped.append((self.key(name), value, reason))
