import sys
import types

import ml_collections
import pytest
from absl import flags

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


def test_a_command_that_does_not_write_to_a_bucket_refuses_its_url_before_any_work(monkeypatch):
    monkeypatch.setattr(flags, "FLAGS", types.SimpleNamespace(model=None))
    with_output = [command for command in map(cli._load, cli._MODULES) if command.positional[-1:] == ("OUT",)]
    to_buckets = {"calibrate_latents", "import_torch"}
    assert {command.name for command in with_output} > to_buckets
    for command in with_output:
        given = [*(["x"] * (len(command.positional) - 1)), "s3://bucket/out.pt"]
        if command.name in to_buckets:
            assert cli._positional([command.name, *given], command) == given
            continue
        with pytest.raises(ConfigError, match=f"s3://bucket/out.pt: {command.name} writes to this machine"):
            cli._positional([command.name, *given], command)


def test_a_forgotten_model_is_told(tmp_path):
    command = Command("look", "", lambda: None, positional=("MODEL", "IN...", "OUT"))
    with pytest.raises(ConfigError, match="^no model was given: look takes MODEL IN... OUT. --help tells more$"):
        cli._positional(["look"], command)
    (tmp_path / "song.wav").touch()
    for name in ("song.wav", "nothing", ""):
        with pytest.raises(ConfigError, match="no model was given: look takes MODEL IN... OUT, and .* is none"):
            cli._positional(["look", str(tmp_path / name), "out"], command)
    (tmp_path / "run" / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "model.pt").touch()
    for name in ("run", "run/checkpoints", "model.pt"):
        with pytest.raises(ConfigError, match="look takes MODEL IN... OUT; 2 were given"):
            cli._positional(["look", str(tmp_path / name), "out"], command)
    with pytest.raises(ConfigError, match="look takes MODEL IN... OUT; 1 were given"):
        cli._positional(["look", "s3://bucket/run"], command)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("--nothing=1", "look has no flag --nothing; --help lists them"),
        ("--sead=1", "look has no flag --sead; did you mean --seed?"),
        ("--batch_size=3", "look has no flag --batch_size; did you mean --config.batch_size?"),
        ("--latent_dmi=3", "look has no flag --latent_dmi; did you mean --config.model.latent_dim?"),
        ("--model=m", "look takes the model first, without --model="),
        ("--seed=x", "--seed=x must be a whole number"),
        ("--share=x", "--share=x must be a number"),
        ("--share=2", "--share=2: 2.0 is not"),
        ("--seed", "--seed needs a value: --seed=VALUE"),
    ],
)
def test_a_flag_that_cannot_be_is_told_in_plain_words(monkeypatch, given, says):
    own = flags.FlagValues()
    flags.DEFINE_integer("seed", None, "", flag_values=own)
    flags.DEFINE_float("share", None, "", 0, 1, flag_values=own)
    for name in ("seed", "share"):
        own.register_key_flag_for_module("look", own[name])
    monkeypatch.setattr(flags, "FLAGS", own)
    monkeypatch.setattr(sys, "argv", ["look"])
    command = Command("look", "", lambda: None, positional=("MODEL",))
    with pytest.raises(ConfigError) as refused:
        cli._parsed(command, ["look", given], ml_collections.ConfigDict({"batch_size": 1, "model": {"latent_dim": 2}}))
    assert str(refused.value).startswith(says)
