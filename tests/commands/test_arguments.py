import sys

import ml_collections
import pytest
from absl import flags

from audiovae_jax.commands import arguments, bundled_configs, cli
from audiovae_jax.commands.arguments import Command
from audiovae_jax.config import build, configuration, named_losses
from audiovae_jax.errors import ConfigError


@pytest.mark.parametrize("form", ["configs/base.py", "base"])
def test_configs_make_workdirs_by_their_names(monkeypatch, form):
    monkeypatch.setattr(sys, "argv", ["train.py", f"--config={form}:lightweight,staged", "--workdir=x"])
    assert arguments.config_name() == "base_lightweight_staged"
    monkeypatch.setattr(sys, "argv", ["train.py", "--workdir=x", "--config", form])
    assert arguments.config_name() == "base"


def test_the_keys_given_on_the_command_line_are_known():
    assert list(configuration.override_keys(["x", "--config.a.b=3", "--noconfig.c", "y"])) == [(1, "a.b"), (2, "c")]


def test_a_bare_name_is_a_config_that_comes_with_the_package():
    assert bundled_configs.locate("tiny") == str(bundled_configs.FOLDER / "tiny.py")
    for other in ("configs/tiny.py", "tiny.py", "nothing"):
        assert bundled_configs.locate(other) == other
    assert bundled_configs.reference().batch_size == 1


def test_numbers_between_commas():
    assert arguments.whole_numbers("dilations", ["1", "3"]) == (1, 3)
    assert arguments.whole_numbers("dilations", None) is None
    with pytest.raises(ConfigError, match="--dilations=1,x must be integers separated by commas"):
        arguments.whole_numbers("dilations", ["1", "x"])


def test_an_argument_in_brackets_may_be_left_out():
    command = Command("look", lambda: None, positional=("[ROOT]",))
    assert arguments._positional(["look"], command) == []
    assert arguments._positional(["look", "a"], command) == ["a"]
    with pytest.raises(ConfigError, match="2 arguments given; usage: look .ROOT. .flags."):
        arguments._positional(["look", "a", "b"], command)


def test_a_command_that_does_not_write_to_a_bucket_refuses_its_url_before_any_work():
    with_output = [command for command in map(cli.load, cli.COMMANDS) if command.positional[-1:] == ("OUT",)]
    # The last takes URLs of the hub, and checks that.
    to_buckets = {"average_checkpoints", "calibrate_latents", "import_torch", "push_to_hub"}
    assert {command.name for command in with_output} > to_buckets
    for command in with_output:
        given = [*(["x"] * (len(command.positional) - 1)), "s3://bucket/out.pt"]
        if command.name in to_buckets:
            assert arguments._positional([command.name, *given], command) == given
            continue
        with pytest.raises(ConfigError, match=f"s3://bucket/out.pt: {command.name} writes to this machine only"):
            arguments._positional([command.name, *given], command)


def test_a_missing_model_is_an_error_with_the_usage(tmp_path):
    command = Command("look", lambda: None, positional=("MODEL", "IN...", "OUT"))
    with pytest.raises(
        ConfigError, match=r"^no model was given; usage: look MODEL IN... OUT .flags. \(--help lists them\)$"
    ):
        arguments._positional(["look"], command)
    (tmp_path / "song.wav").touch()
    for name in ("song.wav", "nothing", ""):
        with pytest.raises(ConfigError, match="no model was given: .* is not a model; usage: look MODEL IN... OUT"):
            arguments._positional(["look", str(tmp_path / name), "out"], command)
    (tmp_path / "run" / "checkpoints" / "3" / "state").mkdir(parents=True)
    (tmp_path / "model.pt").touch()
    for name in ("run", "run/checkpoints", "model.pt"):
        with pytest.raises(ConfigError, match="2 arguments given; usage: look MODEL IN... OUT"):
            arguments._positional(["look", str(tmp_path / name), "out"], command)
    with pytest.raises(ConfigError, match="1 argument given; usage: look MODEL IN... OUT"):
        arguments._positional(["look", "s3://bucket/run"], command)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("--nothing=1", "look has no flag --nothing; --help lists them"),
        ("--sead=1", "look has no flag --sead; did you mean --seed?"),
        ("--batch_size=3", "look has no flag --batch_size; did you mean --config.batch_size?"),
        ("--latent_dmi=3", "look has no flag --latent_dmi; did you mean --config.model.latent_dim?"),
        ("--model=m", "give look the model as its first argument, without --model="),
        ("--seed=x", "--seed=x must be a whole number"),
        ("--share=x", "--share=x must be a number"),
        ("--share=2", "--share=2: 2.0 is not"),
        ("--seed", "--seed needs a value: --seed=VALUE"),
    ],
)
def test_an_invalid_flag_gives_a_readable_error(monkeypatch, given, says):
    own = flags.FlagValues()
    flags.DEFINE_integer("seed", None, "", flag_values=own)
    flags.DEFINE_float("share", None, "", 0, 1, flag_values=own)
    for name in ("seed", "share"):
        own.register_key_flag_for_module("look", own[name])
    monkeypatch.setattr(flags, "FLAGS", own)
    monkeypatch.setattr(sys, "argv", ["look"])
    command = Command("look", lambda: None, positional=("MODEL",))
    with pytest.raises(ConfigError) as refused:
        arguments._parsed(
            command, ["look", given], ml_collections.ConfigDict({"batch_size": 1, "model": {"latent_dim": 2}})
        )
    assert str(refused.value).startswith(says)


@pytest.fixture
def read_config(monkeypatch, tmp_path):
    """The config that a command's flags give."""

    def read(*given):
        monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
        monkeypatch.setattr(sys, "argv", ["train", *given])
        bundled_configs.offer()
        arguments.define_config_flag()
        arguments._parse(Command("train", lambda: None), sys.argv)
        return arguments.read_config(tmp_path)

    return read


@pytest.mark.parametrize("config", [(), ("--config=no_adversarial",), ("--config", "base:mono")])
def test_a_loss_is_added_by_its_name(read_config, config):
    read = read_config(
        *config, "--config.losses.si_sdr.weight=2", "--config.losses.log_spectral_distance.n_fft=512",
        "--config.losses.log_spectral_distance.weight=0.1", "--config.data.sample_rate=48000",
        "--config.losses.multi_resolution_stft.weight=1", "--config.losses.multi_resolution_stft.fft_sizes=(256, 64)",
        "--config.losses.multi_resolution_stft.perceptual_weighting",
    )  # fmt: skip
    assert read.losses.si_sdr.to_dict() == {"_target_": "audiovae_jax.losses.si_sdr", "weight": 2.0}
    assert read.losses.log_spectral_distance.to_dict() == {
        "_target_": "audiovae_jax.losses.log_spectral_distance", "weight": 0.1, "n_fft": 512,
    }  # fmt: skip
    assert read.losses.multi_resolution_stft.to_dict() == {
        "_target_": "audiovae_jax.losses.multi_resolution_stft", "weight": 1.0, "fft_sizes": (256, 64),
        "perceptual_weighting": True, "sample_rate": 48000,
    }  # fmt: skip
    assert {"stft", "mel"} <= set(read.losses)
    names = [name for name, _, _ in build.build_losses(read).terms]
    assert names == list(read.losses)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("=k", "k"), ("=a", "a"), ("=False", False), ("=true", True), ("", True), ("no", False)],
)
@pytest.mark.parametrize("loss", ["stft", "mid_side_stft"])
def test_a_weighting_is_a_name_or_a_boolean(read_config, loss, given, expected):
    key = f"config.losses.{loss}.perceptual_weighting"
    read = read_config(f"--no{key}" if given == "no" else f"--{key}{given}", f"--config.losses.{loss}.weight=1")
    assert read.losses[loss].perceptual_weighting == expected


def test_every_loss_of_the_package_is_added_by_its_name(read_config):
    read = read_config(*(f"--config.losses.{name}.weight=1" for name in named_losses.names()))
    assert len(named_losses.names()) >= 8
    assert set(read.losses) == {"stft", "mel", *named_losses.names()}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("losses.si_sdrr.weight=1", "config.losses has no 'si_sdrr'; did you mean 'si_sdr'\\?"),
        ("losses.kl_divergence.weight=1", "config.losses has no 'kl_divergence'"),
        ("losses.si_sdr.wieght=1", "config.losses.si_sdr: .* has no option 'wieght'; did you mean 'weight'\\?"),
        ("losses.stft.n_fft=1", "config.losses.stft: .*sum_and_difference_stft has no option 'n_fft'"),
        ("losses.si_sdr=1", "config.losses.si_sdr is a section of keys; give config.losses.si_sdr.weight"),
        ("losses.log_spectral_distance.n_fft=x", "--config.losses.log_spectral_distance.n_fft=x must be a whole numb"),
        ("model.latent_dmi=1", "config has no key 'model.latent_dmi'; did you mean 'model.latent_dim'\\?"),
    ],
)
@pytest.mark.parametrize("config", [(), ("--config=base",)])
def test_a_key_that_cannot_be_is_refused_with_the_nearest_name(read_config, config, given, says):
    with pytest.raises(ConfigError, match=says):
        read_config(*config, f"--config.{given}")


def test_a_loss_without_a_weight_is_refused(read_config):
    read = read_config("--config.losses.log_spectral_distance.n_fft=512")
    with pytest.raises(ConfigError, match="config.losses.log_spectral_distance has no weight; give one"):
        configuration.check(read, device_count=1)
