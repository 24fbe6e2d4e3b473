import sys

import pytest

from audiovae_jax.commands import bundled_configs, cli
from audiovae_jax.commands.command import Command
from audiovae_jax.config import configuration
from audiovae_jax.errors import ConfigError


@pytest.mark.parametrize("form", ["configs/base.py", "base"])
def test_configs_make_workdirs_by_their_names(monkeypatch, form):
    monkeypatch.setattr(sys, "argv", ["train.py", f"--config={form}:lightweight,staged", "--workdir=x"])
    assert cli.config_name() == "base_lightweight_staged"
    monkeypatch.setattr(sys, "argv", ["train.py", "--workdir=x", "--config", form])
    assert cli.config_name() == "base"


def test_the_keys_given_on_the_command_line_are_known():
    assert list(configuration.override_keys(["x", "--config.a.b=3", "--noconfig.c", "y"])) == [(1, "a.b"), (2, "c")]


def test_a_bare_name_is_a_config_that_comes_with_the_package():
    assert bundled_configs.locate("tiny") == str(bundled_configs.FOLDER / "tiny.py")
    for other in ("configs/tiny.py", "tiny.py", "nothing"):
        assert bundled_configs.locate(other) == other
    assert bundled_configs.reference().batch_size == 1


def test_numbers_between_commas():
    assert cli.whole_numbers("dilations", ["1", "3"]) == (1, 3)
    assert cli.whole_numbers("dilations", None) is None
    with pytest.raises(ConfigError, match="--dilations=1,x must be whole numbers between commas"):
        cli.whole_numbers("dilations", ["1", "x"])


def test_every_command_is_where_its_name_says():
    for name in cli._MODULES:
        command = cli._load(name)
        assert command.name == name
        begins_with = (
            "MODEL",
            "MODEL_OR_FOLDER",
            "MODEL...",
            "WORKDIR...",
            "OLD...",
            "ROOT",
            "[ROOT]",
            "IN...",
            "step|codec|data|compile|memory",
        )
        assert command.positional == () or command.positional[0] in begins_with


def test_an_argument_in_brackets_may_be_left_out():
    command = Command("look", "", lambda: None, positional=("[ROOT]",))
    assert cli._positional(["look"], command) == []
    assert cli._positional(["look", "a"], command) == ["a"]
    with pytest.raises(ConfigError, match="look takes .ROOT.; 2 were given"):
        cli._positional(["look", "a", "b"], command)
