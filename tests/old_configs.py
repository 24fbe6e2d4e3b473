"""A tree of Hydra configs in the form of the PyTorch system's."""

from pathlib import Path

# The published model, as in the system's default config.
PUBLISHED = {
    "train.yaml": """
experiment_name: stereo
run_name: first
defaults:
  - _self_
  - paths: paths
  - model: audio_vae
  - datamodule: musdb18
  - trainer: default
  - callbacks: callbacks
  - logger: mlflow
  - optional experiment: null
seed: 7
sample_rate: ${datamodule.sample_rate}
print_config: true
ckpt_path: null
""",
    "paths/paths.yaml": """
root_dir: ${oc.env:PROJECT_ROOT,${hydra:runtime.cwd}}
log_dir: ${paths.root_dir}/logs
checkpoint_dir: ${paths.root_dir}/checkpoints
""",
    "model/audio_vae.yaml": """
_target_: src.model.VAELightningModule.VAELightningModule
defaults:
  - architecture: architecture
  - loss_calculator: loss_calculator.yaml
  - optimizer: optimizer
  - scheduler: scheduler
  - discriminator: discriminator/discriminator.yaml
  - adversarial_loss_calculator: adversarial/adversarial_loss.yaml
scheduler_interval: step
log_audio_every_n_epochs: 5
sample_rate: ${datamodule.sample_rate}
num_audio_samples: 2
use_adversarial: true
discriminator_lr: 2e-4
generator_update_every: 2
""",
    "model/architecture/architecture.yaml": """
_target_: src.model.AudioVAE.AudioVAE
in_channels: ${datamodule.channels}
base_channels: 128
channel_mults: [1, 2, 4, 8]
strides: [2, 4, 4, 8]
latent_dim: 128
kernel_size: 7
dilations: [1, 3, 9]
""",
    "model/loss_calculator/loss_calculator.yaml": """
_target_: src.loss_fn.VAELossCalculator.VAELossCalculator
kl_weight: 1.0e-4
kl_warmup_steps: 5000
free_bits: 0.5
stft_loss:
  _target_: src.loss_fn.MultiResolutionSTFTLoss.SumAndDifferenceSTFTLoss
  name: stft
  fft_sizes: [2048, 1024, 512]
  hop_sizes: [512, 256, 128]
  win_lengths: [2048, 1024, 512]
  w_sc: 0.0
  perceptual_weighting: true
  sample_rate: ${datamodule.sample_rate}
mel_loss: null
waveform_loss:
  _target_: src.loss_fn.WaveformLoss.WaveformLoss
  weight: 0.1
""",
    "model/optimizer/optimizer.yaml": """
_target_: torch.optim.AdamW
_partial_: true
lr: 5e-5
betas: [0.9, 0.999]
weight_decay: 1.0e-4
""",
    "model/scheduler/scheduler.yaml": """
_target_: torch.optim.lr_scheduler.CosineAnnealingLR
_partial_: true
T_max: 10
eta_min: 1e-6
""",
    "model/discriminator/discriminator.yaml": """
_target_: src.model.discriminators.EncodecDiscriminator.EnCodecDiscriminator
stft_filters: 32
in_channels: 2
n_ffts: [2048, 1024, 512]
use_msd: true
mpd_periods: [2, 3, 5, 7, 11]
""",
    "model/discriminator/lightweight.yaml": """
_target_: src.model.discriminators.EncodecDiscriminator.EnCodecDiscriminator
stft_filters: 16
use_msd: false
mpd_periods: [2, 3, 5]
""",
    "model/adversarial/adversarial_loss.yaml": """
_target_: src.loss_fn.AdversarialLossCalculator.AdversarialLossCalculator
adversarial_weight: 1.0
feature_matching_weight: 10.0
warmup_steps: 50000
""",
    "model/adversarial/staged.yaml": """
_target_: src.loss_fn.AdversarialLossCalculator.AdversarialLossCalculator
adversarial_weight: 0.5
feature_matching_weight: 15.0
warmup_steps: 20000
""",
    "datamodule/musdb18.yaml": """
_target_: src.dataset.MUSDB18Datamodule.MUSDB18DataModule
root: /music/musdb18
sample_rate: 44100
chunk_duration: 1.5
channels: 2
batch_size: 8
train_samples: 8000
val_samples: 80
num_workers: 4
""",
    "trainer/default.yaml": """
_target_: pytorch_lightning.Trainer
max_epochs: 100
accelerator: gpu
devices: 1
precision: 16-mixed
check_val_every_n_epoch: 1
val_check_interval: 1.0
log_every_n_steps: 50
""",
    "callbacks/callbacks.yaml": """
defaults:
  - model_checkpoint
  - learning_rate_monitor
  - audio_reconstruction_logging
""",
    "callbacks/model_checkpoint.yaml": """
model_checkpoint:
  _target_: pytorch_lightning.callbacks.ModelCheckpoint
  dirpath: ${paths.checkpoint_dir}/${run_name}
  monitor: val/total_loss
  mode: min
  save_top_k: 3
  save_last: true
  every_n_epochs: 2
""",
    "callbacks/learning_rate_monitor.yaml": """
lr_monitor:
  _target_: pytorch_lightning.callbacks.LearningRateMonitor
  logging_interval: step
""",
    "callbacks/audio_reconstruction_logging.yaml": """
audio_reconstruction:
  _target_: src.callbacks.AudioReconstructionCallback.AudioReconstructionCallback
  sample_rate: ${datamodule.sample_rate}
  num_samples: 3
  log_every_n_epochs: 5
""",
    "logger/mlflow.yaml": """
mlflow:
  _target_: pytorch_lightning.loggers.MLFlowLogger
  experiment_name: ${experiment_name}
  tracking_uri: "http://127.0.0.1:5000"
  save_dir: ${paths.log_dir}/mlflow
  log_model: false
""",
}
# Overrides on the old command line that make the same tree train in seconds.
SMALL = [
    "model.architecture.base_channels=2", "model.architecture.channel_mults=[1]", "model.architecture.strides=[8]",
    "model.architecture.latent_dim=3", "model.architecture.dilations=[1]", "model.discriminator.stft_filters=1",
    "model.discriminator.n_ffts=[64]", "model.discriminator.use_msd=false", "model.discriminator.mpd_periods=[2]",
    "model.discriminator.mpd_channels=[2,4]", "model.loss_calculator.stft_loss.fft_sizes=[256,64]",
    "model.loss_calculator.stft_loss.hop_sizes=[64,16]", "model.loss_calculator.stft_loss.win_lengths=[256,64]",
    "model.adversarial_loss_calculator.warmup_steps=1", "datamodule.chunk_duration=0.0232",
    "datamodule.batch_size=4", "datamodule.train_samples=8", "datamodule.val_samples=4", "trainer.max_epochs=1",
    "trainer.precision=32", "~logger",
]  # fmt: skip


def write(folder: Path, files: dict[str, str] = PUBLISHED) -> Path:
    """Write a tree to `folder`, and return its main config."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / next(iter(files))
