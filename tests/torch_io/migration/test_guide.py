"""The guide's tables: everything that they name exists."""

import importlib
import re
from pathlib import Path

import pytest
import yaml

from audiovae_jax.commands import cli
from audiovae_jax.config import configuration
from audiovae_jax.torch_io.migration import migrate
from audiovae_jax.torch_io.migration.findings import Section
from configs import base

ROOT = Path(__file__).resolve().parents[3]
GUIDE = ROOT / "audiovae_jax" / "torch_io" / "migration" / "README.md"
# The chapters and sections of the PyTorch system's document.
CHAPTERS = (
    "Overview of Improvements", "Discriminator Configuration", "Disable Specific Discriminators", "Change FFT Sizes",
    "Adjust Channel Capacity", "Using a Different Discriminator", "Adversarial Loss Calculator",
    "Gradual Adversarial Training", "Strong Adversarial Training", "Focus on Perceptual Quality",
    "Model Save/Load Utilities", "load_training_state()", "What Gets Saved?", "Converting Lightning Checkpoints",
    "Migration Guide", "Legacy Parameter Support", "Saving Models from Lightning", "Testing the Changes",
    "Example 1: Training with Custom Discriminator", "Example 2: Staged Adversarial Training",
    "Example 3: Extract Model for Inference", "Troubleshooting",
)  # fmt: skip
# Every key and class of the tables "Keys" and "Callbacks", with a value that can be converted.
EVERY = """
experiment_name: stereo
run_name: first
paths: {log_dir: logs}
seed: 7
ckpt_path: last.ckpt
resume_from: last.ckpt
resume_from_checkpoint: last.ckpt
model:
  _target_: src.model.VAELightningModule.VAELightningModule
  encoder_frozen: true
  freeze_encoder: true
  use_adversarial: true
  generator_update_every: 2
  discriminator_update_every: 2
  discriminator_lr: 1e-4
  adversarial_weight: 1.0
  adversarial_warmup_steps: 5
  feature_matching_weight: 1.0
  log_audio_every_n_epochs: 2
  num_audio_samples: 2
  architecture: {_target_: src.model.AudioVAE.AudioVAE, latent_dim: 8}
  discriminator: {_target_: src.EnCodecDiscriminator, stft_filters: 4}
  adversarial_loss_calculator: {_target_: src.AdversarialLossCalculator, warmup_steps: 5}
  optimizer: {_target_: torch.optim.AdamW, lr: 1e-4, betas: [0.9, 0.99], eps: 1e-8, weight_decay: 1e-4}
  scheduler: {_target_: torch.optim.lr_scheduler.CosineAnnealingLR, eta_min: 1e-6}
  loss_calculator:
    _target_: src.loss_fn.VAELossCalculator.VAELossCalculator
    kl_weight: 1e-4
    kl_warmup_steps: 5
    free_bits: 0.5
    num_channels: 2
    loss_weights: {wave: 0.5}
    use_sum_and_difference: true
    sum_and_difference_loss: {_target_: src.SumAndDifferenceSTFTLoss, fft_sizes: [256]}
    use_lr_multiresolution: true
    lr_multiresolution_loss: {_target_: src.LRMultiResolutionSTFTLoss, fft_sizes: [256]}
    stft_loss: {_target_: src.SumAndDifferenceSTFTLoss, fft_sizes: [256]}
    mel_loss: {_target_: src.MultiScaleMelSpectrogramLoss, fft_sizes: [256], n_mels: [8]}
    additional_losses: {wave: {type: waveform}}
datamodule:
  _target_: src.dataset.MUSDB18Datamodule.MUSDB18DataModule
  root: /music
  data_dir: /music
  root_dir: /music
  audio_dir: /music
  path: /music
  sample_rate: 44100
  channels: 2
  chunk_duration: 1.5
  crop_duration: 1.5
  chunk_length: 65536
  crop_length: 65536
  batch_size: 8
  num_workers: 4
  val_samples: 80
  train_samples: 8000
  seed: 7
trainer:
  _target_: pytorch_lightning.Trainer
  max_epochs: 5
  max_steps: 500
  check_val_every_n_epoch: 1
  val_check_interval: 0.5
  precision: bf16
  gradient_clip_val: 1.0
  overfit_batches: 1
  accelerator: gpu
  strategy: ddp
  devices: 2
  num_nodes: 1
  accumulate_grad_batches: 1
logger:
  mlflow: {_target_: pytorch_lightning.loggers.MLFlowLogger, tracking_uri: "http://127.0.0.1", experiment_name: stereo}
  wandb: {_target_: pytorch_lightning.loggers.WandbLogger, project: stereo}
callbacks:
  ModelCheckpoint: {_target_: pytorch_lightning.callbacks.ModelCheckpoint, every_n_epochs: 1, every_n_train_steps: 10}
  EarlyStopping: {_target_: pytorch_lightning.callbacks.EarlyStopping, patience: 3}
  LearningRateMonitor: {_target_: pytorch_lightning.callbacks.LearningRateMonitor}
  RichProgressBar: {_target_: pytorch_lightning.callbacks.RichProgressBar}
  TQDMProgressBar: {_target_: pytorch_lightning.callbacks.TQDMProgressBar}
  AudioReconstructionCallback:
    _target_: src.callbacks.AudioReconstructionCallback
    sample_rate: 44100
    log_every_n_epochs: 2
    num_samples: 2
  MLflowVAETrackerCallback: {_target_: src.callbacks.MLflowVAETrackerCallback}
  model_saving_callback: {dirpath: saved}
"""
# Sections whose keys the guide names by a star.
STARRED = r"architecture|discriminator|adversarial_loss_calculator|loss_calculator\.\w+"
# Keys that are read only to report values other than one as having no counterpart.
ONE_VALUE = {"amsgrad", "monitor", "mode", "save_last"}


def _rows(heading):
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    rows = [line.strip("|").split("|", 1) for line in section.splitlines() if line.startswith("| ")]
    return [(old.strip(), new.strip()) for old, new in rows[1:]]


def _anchors(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _places(text):
    """Return the links, keys, symbols, commands and scripts that a cell names."""
    yield from (("link", target) for target in re.findall(r"\]\(([^)]+)\)", text))
    yield from (("key", key) for key in re.findall(r"`config\.([\w.]+?)`", text))
    yield from (("symbol", name) for name in re.findall(r"`(audiovae_jax\.[\w.]+)`", text))
    yield from (("command", name) for name in re.findall(r"`audiovae-jax (\w+)", text))
    yield from (("script", name) for name in re.findall(r"scripts/(\w+)\.py", text))


def _require(kind, place):
    if kind == "link":
        name, _, anchor = place.partition("#")
        path = (GUIDE.parent / name).resolve() if name else GUIDE
        assert path.is_file(), place
        assert not anchor or anchor in _anchors(path), f"{place}: its headings are {sorted(_anchors(path))}"
    elif kind == "key":
        assert configuration.has_key(base.get_config(), place), place
    elif kind == "symbol":
        owner, _, name = place.rpartition(".")
        try:
            assert hasattr(importlib.import_module(owner), name) or importlib.import_module(place), place
        except ModuleNotFoundError:
            pytest.fail(f"there is no {place}")
    elif kind == "command":
        assert place in cli.COMMANDS, place
    else:
        assert (ROOT / "scripts" / f"{place}.py").is_file(), place
        assert place in cli.COMMANDS, place


def test_every_chapter_of_the_old_document_has_its_place():
    rows = dict(_rows("Chapters of the old document"))
    assert tuple(rows) == CHAPTERS
    for chapter, text in rows.items():
        assert list(_places(text)), chapter


@pytest.mark.parametrize(
    "heading",
    ["Chapters of the old document", "Keys", "Callbacks", "Classes and functions", "Commands", "Checkpoint fields",
     "Behaviour", "Errors"],
)  # fmt: skip
def test_every_place_is_there(heading):
    rows = _rows(heading)
    assert len(rows) > 4
    for _, new in rows:
        for kind, place in _places(new):
            _require(kind, place)


def _old_names(heading):
    """Return the last parts of keys and classes in a table's first column, and of those without a counterpart."""
    names, without = set(), set()
    for old, new in _rows(heading):
        found = {name.removesuffix(".*").rpartition(".")[2] for name in re.findall(r"`([\w.*]+)`", old)}
        names |= found
        without |= found if new.startswith("none") else set()
    return names, without


def _nested_keys(values):
    return set(values).union(*(_nested_keys(value) for value in values.values() if isinstance(value, dict)))


def test_the_guide_and_the_command_know_the_same_keys(tmp_path, monkeypatch):
    read = set()
    for kind in ("number", "whole", "flag", "text", "numbers", "whatever"):
        take = getattr(Section, kind)

        def recorded(self, name, default=None, take=take):
            read.add((self.path, name))
            return take(self, name, default)

        monkeypatch.setattr(Section, kind, recorded)
    (tmp_path / "old.yaml").write_text(EVERY)
    made = migrate.migrate([tmp_path / "old.yaml"], [], base.get_config())
    (names, _), (classes, without) = _old_names("Keys"), _old_names("Callbacks")
    assert names | classes <= _nested_keys(yaml.safe_load(EVERY))
    dropped = {re.match(r"[\w.]+", line)[0].rpartition(".")[2] for line in made.dropped}
    assert dropped == without
    named = {name for path, name in read if not re.search(STARRED, path)}
    assert named - ONE_VALUE <= names | classes


@pytest.mark.parametrize("place", [("link", "../nowhere.md"), ("link", "../../README.md#nothing"), ("key", "model.no"),
                                   ("symbol", "audiovae_jax.nothing"), ("command", "nothing"),
                                   ("script", "reconstruct")])  # fmt: skip
def test_a_place_that_is_not_there_fails(place):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        _require(*place)
