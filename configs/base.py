"""Every key of a training run, with its default.

The defaults are the published model and the full discriminator. Add other configs by name:
`--config=configs/base.py:lightweight,staged`. Override keys on the command line: `--config.model.latent_dim=32`.
"""

import importlib
import pkgutil
from pathlib import Path

import ml_collections
from ml_collections import config_dict

from audiovae_jax.config.resolve import did_you_mean
from audiovae_jax.errors import ConfigError


def get_config(names: str = "", override=None) -> ml_collections.ConfigDict:
    """Return the base config with the overrides of other configs.

    Args:
      names: comma-separated configs, applied in order, e.g. "lightweight,staged".
      override: a function that changes a config in place, applied before them. Each config file passes its own.

    Raises:
      ConfigError: a name is unknown.
    """
    config = _base()
    if override is not None:
        override(config)
    given = list(filter(None, (name.strip() for name in names.split(","))))
    # A repeated name is applied at its last position.
    for name in [name for i, name in enumerate(given) if name not in given[i + 1 :]]:
        known = [m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if m.name != "base"]
        if name not in known:
            raise ConfigError(
                f"there is no config {name!r} to add{did_you_mean(name, known)}; choose from {', '.join(known)}"
            )
        importlib.import_module(f"configs.{name}").override(config)
    return config


def _base():
    # Shared by several keys. Setting one of them sets all.
    sample_rate = config_dict.FieldReference(44100)
    channels = config_dict.FieldReference(2)

    config = ml_collections.ConfigDict()
    config.num_steps = 1_000_000  # batches
    # Items over all devices of all hosts. 1 runs anywhere; raise it as far as your memory allows. A training step
    # of this config takes 10 GB per item in float32 (XLA's figure on CPU).
    config.batch_size = 1
    config.seed = 0  # for parameters, latent noise and crops
    config.validate_every = 1000  # steps
    config.checkpoint_every = 5000  # steps; each checkpoint is also validated, so that the best is known
    config.checkpoint_every_minutes = 10.0  # since the last one, without a validation; 0 disables these
    config.checkpoints_kept = 3  # recent validated ones; the best and the newest unvalidated one are kept too
    config.best_checkpoints_kept = 1
    config.best_metric = "total_loss"  # of validation; also "si_sdr_db", "kl_loss" or a loss by its name
    config.max_failed_saves = 10  # failed saves in a row before the run ends, e.g. on a full disk
    # Seconds without progress, outside of compiling, after which a run of several processes ends so that it can be
    # restarted (audiovae_jax/run/README.md). It must exceed the longest step. 0 for no limit.
    config.stuck_timeout = 1800.0
    config.sample_every = 5000  # steps between samples: audio and spectrograms of fixed validation audio
    # Steps between diagnostics of the latent and the discriminator on the validation crops. They warn when
    # training goes wrong (audiovae_jax/run/README.md). 0 disables them.
    config.diagnose_every = 1000
    # Ends the run after `patience` validations in a row without an improvement of the metric by more than `min_delta`.
    config.early_stopping = ml_collections.ConfigDict()
    config.early_stopping.patience = 0  # validations; 0 disables early stopping
    config.early_stopping.metric = "total_loss"  # see best_metric
    config.early_stopping.min_delta = 0.0
    config.use_adversarial = True
    # Number of parts of a device's batch that are computed one after the other, for less memory. With 4, a batch of 64
    # takes the memory of 16. The update is that of the whole batch.
    config.accumulation_steps = 1
    # If above 0, gradients are balanced as in EnCodec. Each loss on the reconstruction gets its weight's share of a
    # gradient of this norm, at any scale of the losses.
    config.balancer_norm = 0.0
    config.latent_noise = 0.0  # standard deviation of noise on the latent in training, for a robust decoder
    config.generator_update_every = 1  # steps, while the discriminator is active
    config.discriminator_update_every = 1  # steps, while the discriminator is active
    # Where a new workdir starts from: parameters, both optimizer states and the step are restored. Give one of
    # - a workdir, one of its checkpoints, or a saved model; the config may differ in all but the model;
    # - a torch, Lightning or safetensors file, whose settings replace the ones here;
    # - the URL of one of these, such as hf://owner/name. The run's config names the commit.
    config.init_from = config_dict.placeholder(str)
    # Patterns of the model's parameters that keep their initial values then. Others may be of another latent_dim or
    # in_channels: ("encoder/final_conv", "decoder/input_conv") for another latent_dim.
    config.init_reset = ()
    config.init_weights_only = False  # True restores only the networks: step 0, new optimizers, the settings here

    # Where metrics are logged, in addition to metrics.jsonl in the workdir (audiovae_jax/run/tracking/README.md).
    config.logging = ml_collections.ConfigDict()
    config.logging.writers = ("tensorboard",)  # also "mlflow" and "wandb" (offline), if installed
    # A server or store. Unset: MLFLOW_TRACKING_URI, or mlflow.db next to the workdir if that is unset too.
    config.logging.mlflow_uri = config_dict.placeholder(str)
    config.logging.mlflow_experiment = "audiovae_jax"
    config.logging.wandb_project = "audiovae_jax"

    # An update whose loss or gradient is NaN or infinite is skipped.
    config.safety = ml_collections.ConfigDict()
    config.safety.max_skipped = 10  # skipped updates of a network in a row before a rollback to the last checkpoint
    config.safety.max_rollbacks = 3  # rollbacks per run, each continued with other crops; then the run ends
    config.safety.kept_batches = 10  # skipped batches that are saved as audio

    # The arguments of audiovae_jax.AudioVAE.
    config.model = ml_collections.ConfigDict()
    config.model.in_channels = channels
    config.model.base_channels = 128
    config.model.channel_mults = (1, 2, 4, 8)  # widths of the blocks, as multiples of base_channels
    config.model.strides = (2, 4, 4, 8)  # their product is the hop: 256 samples per latent frame
    config.model.latent_dim = 64
    config.model.kernel_size = 7  # of the residual units, odd
    config.model.dilations = (1, 3, 9)  # of the residual units in each block
    # The model's kind. These are the published model's; configs/oobleck.py has those of Stable Audio.
    config.model.activation = "snake"  # also "snake_beta" and "elu"
    config.model.posterior = "logvar"  # also "softplus", and "none" for an autoencoder without noise
    # "floor" and "ceil" pad half of each stride on both sides, "ceil" as in DAC and Stable Audio. They differ for odd
    # strides. "causal" pads only the past, for live audio.
    config.model.padding = "floor"
    config.model.final_bias = True  # of the decoder's last convolution
    config.model.final_tanh = False  # True bounds the decoded audio
    config.model.decoder_base_channels = config_dict.placeholder(int)  # unset: base_channels
    config.model.bottleneck_channels = config_dict.placeholder(int)  # unset: no projections to and from the latent
    config.model.encoder_frozen = False  # True trains only the decoder
    # True stores only activations between blocks and recomputes the others for the gradient. This takes less
    # memory and more time (audiovae_jax/performance/benchmark/README.md).
    config.model.remat = False
    config.model.dtype = "float32"  # of the convolutions; "bfloat16" is faster on GPU and TPU

    # Any class that maps audio [B, T, C] to (logits, feature_maps). The other keys are its arguments.
    config.discriminator = ml_collections.ConfigDict()
    config.discriminator._target_ = "audiovae_jax.discriminators.EnCodecDiscriminator"
    config.discriminator.in_channels = channels
    config.discriminator.stft_filters = 32
    config.discriminator.n_ffts = (2048, 1024, 512, 256, 128)  # samples
    config.discriminator.use_msd = True
    config.discriminator.msd_scales = (1, 2, 4)  # average-pooling factors
    config.discriminator.use_mpd = True
    config.discriminator.mpd_periods = (2, 3, 5, 7, 11)  # samples
    config.discriminator.mpd_channels = (32, 128, 512, 1024, 1024)
    config.discriminator.use_mel_stft = False
    config.discriminator.mel_stft_filters = 32
    config.discriminator.mel_stft_n_ffts = (2048, 1024, 512, 256, 128)  # samples
    config.discriminator.mel_stft_n_mels = (128, 128, 80, 64, 32)
    config.discriminator.mel_stft_sample_rate = sample_rate
    config.discriminator.mel_stft_f_min = 0.0  # Hz
    config.discriminator.mel_stft_f_max = config_dict.placeholder(float)  # Hz; unset: half the sample rate
    config.discriminator.use_cqt = False
    config.discriminator.cqt_filters = 32
    config.discriminator.cqt_bins_per_octave = (24, 36, 48)
    config.discriminator.cqt_hop_lengths = (512, 256, 256)  # samples, multiples of 2 ** (cqt_octaves - 1)
    config.discriminator.cqt_octaves = 9
    config.discriminator.cqt_f_min = 32.70  # Hz; the highest octave must end below half the sample rate
    config.discriminator.cqt_sample_rate = sample_rate
    config.discriminator.dtype = "float32"  # of the convolutions; STFTs stay float32
    config.discriminator.remat = False  # True: a fifth less memory on GPUs, for slightly more memory traffic

    # The arguments of audiovae_jax.AdversarialLossCalculator.
    config.adversarial = ml_collections.ConfigDict()
    config.adversarial.adversarial_weight = 1.0
    config.adversarial.feature_matching_weight = 10.0
    config.adversarial.warmup_steps = 0  # steps before the discriminator is used
    config.adversarial.loss = "hinge"  # also "least_squares" and "relativistic" (pairs of real and generated audio)
    config.adversarial.ramp_steps = 0  # steps after the warm-up over which both weights rise linearly from 0
    config.adversarial.r1_weight = 0.0  # of the gradient penalty of real audio, in the discriminator's loss
    config.adversarial.r2_weight = 0.0  # of the gradient penalty of generated audio, likewise

    # Reconstruction losses by name: a dotted path, a weight and the function's options.
    config.losses = ml_collections.ConfigDict()
    config.losses.stft = ml_collections.ConfigDict()
    config.losses.stft._target_ = "audiovae_jax.losses.sum_and_difference_stft"
    config.losses.stft.weight = 1.0
    config.losses.stft.fft_sizes = (2048, 1024, 512, 256, 128, 64, 32)  # samples
    config.losses.stft.hop_sizes = config_dict.placeholder(tuple)  # samples; unset: a quarter of each FFT
    config.losses.stft.win_lengths = config_dict.placeholder(tuple)  # samples; unset: each FFT's
    config.losses.stft.w_sc = 0.0
    config.losses.stft.w_log_mag = 1.0
    config.losses.stft.w_lin_mag = 1.0
    config.losses.stft.w_sum = 1.0
    config.losses.stft.w_diff = 1.0
    config.losses.stft.w_log1p_mag = 0.0
    # True or "a" for A-weighting, "k" for K-weighting (ITU-R BS.1770), False for none.
    config.losses.stft.perceptual_weighting = config_dict.FieldReference(True, field_type=object)
    config.losses.stft.sample_rate = sample_rate
    config.losses.mel = ml_collections.ConfigDict()
    config.losses.mel._target_ = "audiovae_jax.losses.multi_scale_mel"
    config.losses.mel.weight = 1.0
    config.losses.mel.fft_sizes = (2048, 1024, 512)  # samples
    config.losses.mel.hop_sizes = config_dict.placeholder(tuple)  # samples; unset: a quarter of each FFT
    config.losses.mel.win_lengths = config_dict.placeholder(tuple)  # samples; unset: each FFT's
    config.losses.mel.n_mels = (128, 64, 32)
    config.losses.mel.sample_rate = sample_rate
    config.losses.mel.w_sc = 1.0
    config.losses.mel.w_log_mag = 1.0
    config.losses.mel.convergence = "item"  # "batch" is the PyTorch system's, which depends on the device count

    # The KL divergence of the latent from the standard normal.
    config.kl = ml_collections.ConfigDict()
    config.kl.weight = 1e-4
    config.kl.warmup_steps = 5000  # steps over which the weight rises from 0
    config.kl.free_bits = 0.0  # nats per latent element
    config.kl.reduction = "sum"  # sums over latents and time; "frame" divides by the frames, for any crop length
    config.kl.cycle_steps = 0  # steps after which the warm-up restarts (cyclic annealing); 0 for a single warm-up
    # Bits per second of audio. If set, the term is (KL / target - 1)^2, which needs a weight near 1.
    config.kl.target_bits_per_second = config_dict.placeholder(float)

    # Alignment of the latents with the features of a frozen teacher (audiovae_jax/config/README.md).
    config.alignment = ml_collections.ConfigDict()
    config.alignment._target_ = config_dict.placeholder(str)  # a function of your own; unset: no alignment
    config.alignment.weight = 0.1  # 0 disables it too
    config.alignment.cosine_margin = 0.5  # latents and features up to this cosine distance cost nothing
    config.alignment.distance_margin = 0.25  # similarities that differ by up to this cost nothing

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adamw"  # also "lion", "adafactor", "muon" and "schedule_free_adamw"
    # "cosine" falls over num_steps. "constant", "inverse_sqrt" and "warmup_stable_decay": training/optimizer.py
    config.optimizer.schedule = "cosine"
    config.optimizer.decay_steps = 0  # steps of the decay of "inverse_sqrt" and "warmup_stable_decay"
    config.optimizer.learning_rate = 1.5e-4  # at step 0
    config.optimizer.final_learning_rate = 1e-5  # at num_steps
    # Steps over which the rate rises linearly to the cosine schedule. For the discriminator they start at
    # adversarial.warmup_steps.
    config.optimizer.warmup_steps = 0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 1e-4  # decoupled, on every parameter
    config.optimizer.clip_norm = 1.0  # global gradient norm; 0 disables clipping
    config.discriminator_optimizer = ml_collections.ConfigDict(config.optimizer.to_dict())
    # Of the model only: pairs of a pattern of parameters and a factor of their rate, for instance
    # (("encoder", 0.0), ("decoder/blocks_*", 0.1)). The first match counts; 0 freezes.
    config.optimizer.learning_rate_factors = ()
    config.discriminator_optimizer.learning_rate = 1e-4
    config.discriminator_optimizer.final_learning_rate = 1e-6

    # The moving average of the model's parameters. If there is one, it is validated, sampled and saved.
    config.ema = ml_collections.ConfigDict()
    config.ema.decay = 0.0  # for instance 0.999; 0 for no average
    config.ema.start_step = 0  # until then the average equals the parameters
    config.ema.power = 0.0  # the decay rises as 1 - (1 + n)**-power over n steps, for instance 0.75; 0 disables this

    config.data = ml_collections.ConfigDict()
    # A folder of audio, a manifest (.jsonl, .csv), shards, tars, MUSDB18-HQ or GTZAN. It may be local or a URL
    # (s3://, gs://; set AWS_ENDPOINT_URL for another S3 server). Several roots are separated by commas and sampled
    # as one data set. Unset: the built-in generator.
    config.data.root = config_dict.placeholder(str)
    # One or several roots that are used entirely for validation. No file of root or mix is held out then.
    config.data.val_root = config_dict.placeholder(str)
    config.data.source = "auto"  # type of root: folder, manifest, shards, webdataset, musdb18, gtzan; auto detects it
    config.data.mix = ()  # weighted roots instead of root: (("DIR", 2.0), ("built-in", 1.0))
    config.data.sample_rate = sample_rate  # Hz; files of other rates are resampled
    config.data.channels = channels
    config.data.crop_length = 65536  # samples, a multiple of the hop
    config.data.min_seconds = 0.1  # shorter files are skipped; files shorter than a crop are padded
    config.data.padding = "zero"  # "zero" pads with zeros, "loop" repeats the file
    config.data.peak_normalize = True  # scale each crop to a peak of 1
    config.data.validation_fraction = 0.1  # of the files, by a hash of their names; at least 3 of 10 or more, else 1
    config.data.validation_crops = 8  # fixed crops per validation, rounded up to whole batches
    # Excerpts of validation audio that are logged as audio and spectrograms, from different files where possible.
    config.data.num_samples = 4
    config.data.sample_seconds = 5.0  # of each sample, if the file is long enough
    config.data.fixed_batch = False  # True trains and validates on one fixed batch
    config.data.num_threads = 8  # threads that read and decode crops
    config.data.prefetch_batches = 8  # batches read ahead, each by one thread
    config.data.mixture_share = 0.25  # fraction of MUSDB18 crops from mixtures; the others are single stems
    config.data.full_band_share = config_dict.placeholder(float)  # fraction of crops from full-band files
    config.data.min_loudness_db = config_dict.placeholder(float)  # RMS in dBFS; quieter crops are drawn again
    config.data.augment = ml_collections.ConfigDict()  # of training crops, seeded by the record number
    config.data.augment.gain_db = (0.0, 0.0)  # range of a random gain in dB
    config.data.augment.polarity_probability = 0.0
    config.data.augment.swap_probability = 0.0  # of swapping the channels
    config.data.max_bad_share = 0.5  # fraction of unusable files above which the run ends
    config.data.read_timeout = 60.0  # seconds before an unresponsive file is skipped; 0 for no timeout
    config.data.retry_seconds = 120.0  # how long a failing request to a URL is retried
    config.data.cache = config_dict.placeholder(str)  # folder that caches downloads from URLs
    config.data.cache_gigabytes = 50.0
    config.data.index = True  # cache the results of file probing in the user's cache folder
    return config
