import importlib.util
import json
import pkgutil
from pathlib import Path

import ml_collections
import pytest

import configs
from audiovae_jax.config import build, configuration
from audiovae_jax.errors import ConfigError
from configs import base

NAMES = [
    name if name in ("base", "tiny") else pytest.param(name, marks=pytest.mark.slow)
    for _, name, _ in pkgutil.iter_modules(configs.__path__)
]


@pytest.mark.parametrize("name", NAMES)
def test_every_config_can_be_built(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    if config.init_weights_only:
        config.init_from = "MODEL"
    config = configuration.finalize(config, base.get_config())
    configuration.check(config, device_count=1)
    recipe = build.build_recipe(config)
    assert (recipe.discriminator is not None) == config.use_adversarial


def test_configs_mix_in_the_order_given():
    config = base.get_config("lightweight,staged")
    assert config.discriminator.stft_filters == 16
    assert config.adversarial.warmup_steps == 20_000
    assert base.get_config("tiny,overfit").batch_size == base.get_config("overfit").batch_size
    assert base.get_config("mono,mono").data.channels == 1
    assert importlib.import_module("configs.mono").get_config("mono").data.channels == 1
    with pytest.raises(ConfigError, match="no config 'lightwait' to add; did you mean 'lightweight'"):
        base.get_config("lightwait")


def test_a_copy_of_a_config_uses_its_own_values(tmp_path):
    text = (Path(configs.__file__).parent / "tiny.py").read_text()
    assert "config.batch_size = 4" in text
    (tmp_path / "my.py").write_text(text.replace("config.batch_size = 4", "config.batch_size = 12"))
    spec = importlib.util.spec_from_file_location("my", tmp_path / "my.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.get_config().batch_size == 12
    assert module.get_config("mono").data.channels == 1


def test_shared_keys_follow_each_other():
    config = base.get_config()
    config.data.sample_rate = 48000
    config.data.channels = 1
    assert config.losses.stft.sample_rate == config.discriminator.mel_stft_sample_rate == 48000
    assert config.model.in_channels == config.discriminator.in_channels == 1


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("model.latent_dims", "config has no key 'model.latent_dims'; did you mean 'model.latent_dim'"),
        ("latent_dim", "config has no key 'latent_dim'; did you mean 'model.latent_dim'"),
        ("batchsize", "config has no key 'batchsize'; did you mean 'batch_size'"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest(key, message):
    config = base.get_config()
    *section, leaf = key.split(".")
    (config[section[0]] if section else config)[leaf] = 3
    with pytest.raises(ConfigError, match=message):
        configuration.finalize(config, base.get_config())


def test_a_missing_key_is_refused():
    config = base.get_config()
    del config.kl.weight
    with pytest.raises(ConfigError, match=r"lacks the key 'kl.weight'; start from configs/base.py"):
        configuration.finalize(config, base.get_config())


@pytest.mark.parametrize("old", configuration.LEGACY_KEYS)
def test_the_old_flat_keys_work_and_warn(old):
    config = base.get_config()
    config[old] = 3
    new = configuration.LEGACY_KEYS[old]
    with pytest.warns(DeprecationWarning, match=f"config.{old} is deprecated; use config.{new}"):
        config = configuration.finalize(config, base.get_config())
    assert configuration.flatten(config)[new] == 3
    assert old not in config


def _changed(**changes):
    config = base.get_config()
    config.batch_size = 4
    for key, value in changes.items():
        section, _, leaf = key.rpartition("__")
        (config[section] if section else config)[leaf] = value
    return configuration.finalize(config, base.get_config())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__crop_length": 33075}, "not a multiple of the model's hop of 256 samples.*use 33024 or 33280"),
        ({"batch_size": 6}, "batch_size=6 cannot be split over 4 devices; use 4 or 8"),
        ({"batch_size": 8, "accumulation_steps": 3}, "4 devices and config.accumulation_steps=3 parts; use 12"),
        ({"model__strides": (2, 4, 8)}, "channel_mults has 4 entries and config.model.strides 3"),
        ({"data__crop_length": 1024}, "has an FFT of 2048 samples, longer than config.data.crop_length=1024"),
        ({"model__strides": (2, 4, 4, 0)}, "strides=.* must be positive whole numbers"),
        ({"model__strides": (2, 4, 4, "x")}, "strides=.* must be positive whole numbers"),
        ({"discriminator__n_ffts": ()}, "n_ffts=.* must be FFT lengths in samples, at least one"),
        ({"seed": -1}, "seed=-1 must lie between 0 and 4294967295"),
        ({"data__sample_seconds": 1e-6}, "sample_seconds=1e-06 must lie between one sample and 300"),
        ({"data__sample_seconds": float("inf")}, "sample_seconds=inf must lie between one sample and 300"),
        ({"data__root": " "}, "data.root is empty; give a path, or leave the key out"),
        ({"data__val_root": "/a"}, "val_root is set, but there is nothing to train on; set config.data.root"),
        ({"data__val_root": ""}, "data.val_root is empty; give a path"),
        ({"init_from": ""}, "init_from is empty; give a path"),
        ({"data__min_seconds": -1.0}, "min_seconds=-1.0 must not be negative"),
        ({"num_steps": 0}, "num_steps=0 must be at least 1"),
        ({"generator_update_every": 0}, "generator_update_every=0 must be at least 1"),
        ({"checkpoint_every_minutes": -1.0}, "checkpoint_every_minutes=-1.0 must be at least 0"),
        ({"data__validation_fraction": 1.5}, "validation_fraction=1.5 must lie between 0 and 1"),
        ({"discriminator": ml_collections.ConfigDict()}, "discriminator must be provided when use_adversarial=True"),
        ({"losses": ml_collections.ConfigDict()}, "losses is empty"),
        (
            {"best_metric": "mell"},
            "best_metric='mell' is not a validation metric; did you mean 'mel'.*use one of total",
        ),
        ({"early_stopping__metric": "d_loss"}, "early_stopping.metric='d_loss' is not a validation metric"),
        ({"early_stopping__patience": -1}, "early_stopping.patience=-1 must be at least 0"),
    ],
)
def test_impossible_values_are_refused_with_the_remedy(changes, message):
    with pytest.raises(ConfigError, match=message):
        configuration.check(_changed(**changes), device_count=4)


def test_lists_of_different_lengths_in_a_loss_are_refused_when_it_is_built():
    config = base.get_config()
    config.losses.mel.n_mels = (128, 64)
    with pytest.raises(ConfigError, match=r"config.losses.mel: .* n_mels has 2 numbers for 3 fft_sizes"):
        build.build_losses(configuration.finalize(config, base.get_config()))


def test_differences_name_what_matters():
    config = _changed()
    old = json.loads(configuration.to_json(config))
    config.num_steps, config.checkpoint_every, config.model.latent_dim = 5, 7, 9
    new = json.loads(configuration.to_json(config))
    assert configuration.differences(old, new) == ["model.latent_dim: 64 -> 9", "num_steps: 1000000 -> 5"]


def test_an_older_config_reproduces_its_run():
    new = configuration.plain(_changed())
    old = configuration.plain(_changed())
    for section, key in (
        ("data", "val_root"),
        ("optimizer", "warmup_steps"),
        ("discriminator_optimizer", "warmup_steps"),
        ("adversarial", "loss"),
        ("adversarial", "ramp_steps"),
        ("kl", "cycle_steps"),
        ("kl", "target_bits_per_second"),
    ):
        del old[section][key]
    del old["checkpoint_every_minutes"]
    del old["losses"]["stft"]["w_log1p_mag"]
    old["discriminator"] = {key: value for key, value in old["discriminator"].items() if "cqt" not in key}
    assert configuration.differences(old, new) == []
    new["optimizer"]["warmup_steps"] = 5
    assert configuration.differences(old, new) == ["optimizer.warmup_steps: 0 -> 5"]


def test_a_missing_config_file_is_named(tmp_path):
    (tmp_path / "tiny.py").write_text("")
    with pytest.raises(ConfigError, match="there is no such file; did you mean tiny.py"):
        configuration.load_module(tmp_path / "tinny.py")
    with pytest.raises(ConfigError, match="has no function get_config"):
        configuration.load_module(tmp_path / "tiny.py")
