"""The config page lists every loss and discriminator with its arguments and their defaults."""

import re
from pathlib import Path

import numpy as np
import pytest

from audiovae_jax import discriminators, losses
from audiovae_jax.config import named_losses, resolve

GUIDE = Path(resolve.__file__).parent / "README.md"
CLASSES = [name for name, value in vars(discriminators).items() if isinstance(value, type)]


def _listed(heading):
    """`{name: (defaults as written)}` of a section's table."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## )", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", section, re.MULTILINE)
    return {name: {} if cell == "none" else dict(re.findall(r"`(\w+)=(.*?)`", cell)) for name, cell in rows}


def _shown(value):
    if isinstance(value, type):
        value = np.dtype(value).name
    return f'"{value}"' if isinstance(value, str) else repr(value)


@pytest.mark.parametrize(
    ("heading", "home", "names"),
    [("Losses", losses, named_losses.names()), ("Discriminators", discriminators, CLASSES)],
)
def test_every_loss_and_discriminator_is_listed_with_its_defaults(heading, home, names):
    assert _listed(heading) == {
        name: {
            argument: _shown(parameter.default)
            for argument, parameter in resolve.named_parameters(getattr(home, name)).items()
            if parameter.default is not parameter.empty
        }
        for name in names
    }
