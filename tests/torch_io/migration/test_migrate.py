import json

import old_configs
import pytest

from audiovae_jax.commands import bundled_configs
from audiovae_jax.config import build, configuration
from audiovae_jax.errors import ConfigError
from audiovae_jax.run import train
from audiovae_jax.torch_io.migration import migrate
from configs import base


@pytest.fixture(autouse=True)
def _offered():
    bundled_configs.offer()


def _migrated(folder, files=old_configs.PUBLISHED, *overrides):
    reference = base.get_config()
    made = migrate.migrate([old_configs.write(folder, files)], list(overrides), reference)
    migrate.write(made, folder / "mine.py", reference)
    config = configuration.load_module(folder / "mine.py").get_config()
    return made, configuration.finalize(config, reference)


def _has(lines, *parts):
    return any(all(part in line for part in parts) for line in lines)


def test_the_published_tree(tmp_path):
    made, config = _migrated(tmp_path)
    expected = base.get_config()
    expected.update_from_flattened_dict({
        "seed": 7, "batch_size": 8, "num_steps": 100_000, "validate_every": 1000, "checkpoint_every": 2000,
        "sample_every": 5000, "generator_update_every": 2, "model.latent_dim": 128, "model.dtype": "bfloat16",
        "discriminator.dtype": "bfloat16", "discriminator.n_ffts": (2048, 1024, 512),
        "discriminator_optimizer.learning_rate": 2e-4, "optimizer.learning_rate": 5e-5,
        "optimizer.final_learning_rate": 1e-6, "adversarial.warmup_steps": 50_000, "kl.free_bits": 0.5,
        "data.root": "/music/musdb18", "data.source": "musdb18", "data.crop_length": 66_048,
        "data.validation_crops": 80, "data.num_samples": 3, "data.num_threads": 4,
        "logging.writers": ("tensorboard", "mlflow"),
        "logging.mlflow_uri": "http://127.0.0.1:5000", "logging.mlflow_experiment": "stereo",
        "losses.stft.fft_sizes": (2048, 1024, 512), "losses.stft.w_lin_mag": 0.0,
    })  # fmt: skip
    del expected.losses.mel
    expected.losses.waveform = {"_target_": "audiovae_jax.losses.waveform_l1", "weight": 0.1}
    assert configuration.flatten(config) == configuration.flatten(expected)
    assert _has(made.changed, "trainer.devices: ", "CUDA_VISIBLE_DEVICES")
    assert _has(made.changed, "callbacks.lr_monitor: ", "learning rate")
    assert _has(made.changed, "paths: ", "workdir")
    assert _has(made.changed, "datamodule.chunk_duration", "66150", "66048")
    text = (tmp_path / "mine.py").read_text()
    assert all(line in text for line in (*made.changed, *made.dropped))


@pytest.mark.slow
def test_a_migrated_config_trains(tmp_path):
    made, config = _migrated(tmp_path, old_configs.PUBLISHED, *old_configs.SMALL, "datamodule.root=null")
    assert _has(made.statements, "config.num_steps = 2")
    config.data.source = "auto"  # the built-in generator
    state = train.train(config, tmp_path / "run")
    assert int(state.step) == 2


def test_groups_are_chosen_as_documented(tmp_path):
    _, config = _migrated(tmp_path, old_configs.PUBLISHED, "model.discriminator=discriminator/lightweight",
                          "model.adversarial_loss_calculator=adversarial/staged")  # fmt: skip
    assert (config.discriminator.stft_filters, config.discriminator.use_msd) == (16, False)
    assert config.discriminator.mpd_periods == (2, 3, 5)
    assert config.discriminator.n_ffts == (2048, 1024, 512, 256, 128)  # the class's own
    assert config.adversarial.warmup_steps == 20_000
    assert config.adversarial.feature_matching_weight == 15.0


def test_the_flat_form_of_before(tmp_path):
    _, config = _migrated(
        tmp_path,
        {"audio_vae.yaml": "use_adversarial: true\nadversarial_warmup_steps: 5\nadversarial_weight: 0.1\n"
                           "feature_matching_weight: 2\nkl_weight: 1e-5"},
    )  # fmt: skip
    expected = {"adversarial_weight": 0.1, "feature_matching_weight": 2.0, "warmup_steps": 5}
    assert {key: config.adversarial[key] for key in expected} == expected
    assert config.kl.weight == 1e-5


def test_steps_of_lightning_are_two_a_batch(tmp_path):
    made, config = _migrated(tmp_path, {"m.yaml": "model: {use_adversarial: true}\ntrainer: {max_steps: 1000}"})
    assert config.num_steps == 500
    assert _has(made.changed, "trainer.max_steps", "500 batches")
    _, config = _migrated(tmp_path, {"m.yaml": "model: {use_adversarial: false}\ntrainer: {max_steps: 1000}"})
    assert config.num_steps == 1000


@pytest.mark.parametrize(
    ("devices", "count"), [("4", 4), ("[0, 1]", 2), ("'3'", 3), ("'0,1'", 2), ("auto", 1), ("-1", 1), ("null", 1)]
)
def test_the_batch_of_one_device_becomes_that_of_an_update(tmp_path, devices, count):
    made, config = _migrated(tmp_path, old_configs.PUBLISHED, f"trainer.devices={devices}", "trainer.num_nodes=2",
                             "trainer.accumulate_grad_batches=3", "trainer.val_check_interval=30")  # fmt: skip
    size = 8 * count * 2 * 3
    assert (config.batch_size, config.accumulation_steps) == (size, 3)
    assert config.num_steps == 100 * (8000 // size)
    assert config.validate_every == 10  # which counted batches, not updates
    assert _has(
        made.changed, "datamodule.batch_size: ", "items of one device", f"config.batch_size={8 * count * 2 * 3}"
    )
    unknown = devices in ("auto", "-1", "null")
    assert _has(made.changed, "datamodule.batch_size: ", "give trainer.devices=N") == unknown


def test_the_batch_of_a_single_device_stays(tmp_path):
    made, config = _migrated(tmp_path)
    assert config.batch_size == 8
    assert not _has(made.changed, "batch_size")


def test_epochs_become_steps_by_train_samples(tmp_path):
    files = {"m.yaml": "trainer: {max_epochs: 5, devices: 2}\ndatamodule: {batch_size: 8}"}
    made, config = _migrated(tmp_path, files)
    assert config.num_steps == base.get_config().num_steps
    assert _has(made.dropped, "trainer.max_epochs=5", "give train_samples=N")
    for key in ("train_samples", "datamodule.train_samples"):
        made, config = _migrated(tmp_path, files, f"{key}=1600")
        assert config.num_steps == 500
        assert _has(made.changed, "trainer.max_epochs", "5 epochs of 100 batches")
        assert not made.dropped


def test_another_discriminator_and_rate(tmp_path):
    files = {
        "m.yaml": """
datamodule: {_target_: src.dataset.GTZANDatamodule.GTZANDataModule, sample_rate: 22050, channels: 2}
discriminator:
  _target_: src.model.discriminators.mel_stft_discriminator.MultiScaleMelSTFTDiscriminator
  filters: 4
  n_ffts: [512]
  n_mels: [20]
  sample_rate: 44100
  use_log: true
"""
    }
    made, config = _migrated(tmp_path, files)
    assert config.data.sample_rate == config.discriminator.sample_rate == config.losses.mel.sample_rate == 22050
    assert config.data.source == "gtzan"
    assert _has(made.dropped, "discriminator.sample_rate=44100", "one sample rate")
    config.data.channels = config.model.in_channels = config.discriminator.in_channels = 2
    assert type(build.build_discriminator(config)).__name__ == "MultiScaleMelSTFTDiscriminator"


LOSSES = """
_target_: src.loss_fn.VAELossCalculator.VAELossCalculator
num_channels: 2
use_sum_and_difference: true
loss_weights: {wave: 0.5}
additional_losses:
  wave: {type: waveform}
  ratio: {_target_: src.loss_fn.MultiResolutionSTFTLoss.SISDRLoss, reduction: sum}
  mine: {_target_: src.mine.MyLoss, power: 2}
  mel_loss:
    _target_: src.loss_fn.MelSpectrogramLoss.MultiScaleMelSpectrogramLoss
    sample_rate: 44100
"""


def test_losses_of_every_form(tmp_path):
    made, config = _migrated(tmp_path, {"m.yaml": LOSSES})
    assert set(config.losses) == {"sum_and_difference", "wave", "ratio", "mel"}
    assert config.losses.wave.to_dict() == {"_target_": "audiovae_jax.losses.waveform_l1", "weight": 0.5}
    assert config.losses.sum_and_difference.fft_sizes == (2048, 1024, 512, 256)
    assert config.losses.sum_and_difference.w_sc == 1.0  # the class's default, not base.py's
    assert config.losses.mel.n_mels == (64, 128, 256)
    assert _has(made.dropped, "mine=src.mine.MyLoss", "it is a torch class")
    assert _has(made.dropped, "ratio.reduction=sum")
    assert config.kl.warmup_steps == 0
    build.build_losses(config)


def test_unknown_keys_are_listed_and_nothing_is_lost(tmp_path):
    made, _ = _migrated(
        tmp_path,
        {"m.yaml": "odd: 1\nseed: ${nothing.here}\nmodel:\n  strange: {deep: [1]}\n  kl_weight: heavy\n"
                   "callbacks: {mine: {_target_: src.Mine, a: 1}}\noptimizer: {_target_: torch.optim.SGD, lr: 1}\n"
                   "discriminator: {_target_: src.model.discriminators.MyCustomDiscriminator, width: 3}"},
    )  # fmt: skip
    assert made.statements == ()
    for parts in (
        ("odd=1", "there is no counterpart"), ("seed=${nothing.here}", "a key that the given files do not define"),
        ("model.strange.deep=[1]",), ("kl_weight=heavy", "not a number"), ("callbacks.mine=src.Mine",),
        ("optimizer._target_=torch.optim.SGD", "AdamW"), ("discriminator._target_=", "write it in flax"),
    ):  # fmt: skip
        assert _has(made.dropped, *parts), parts


def test_values_that_cannot_work_are_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ConfigError, match="nothing was written"):
        _migrated(tmp_path, {"m.yaml": "architecture: {strides: [2, 2], channel_mults: [1]}"})
    assert not (tmp_path / "mine.py").exists()


def test_hostile_text_stays_text(tmp_path):
    evil = '"""\nimport os; os.mkdir("gone")\n# \'\'\' \\'
    made, config = _migrated(tmp_path, {"m.yaml": json.dumps({"datamodule": {"root": evil}, "note": evil})})
    assert config.data.root == evil
    assert len(made.dropped) == 1
