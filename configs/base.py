"""Every key of a training run, with its default: the published model and the full discriminator.

Mix other configs in by name: `--config=configs/base.py:lightweight,staged`. Override keys on the
command line: `--config.model.latent_dim=32`.
"""

import importlib
import pkgutil
from pathlib import Path

import ml_collections
from ml_collections import config_dict

from audiovae_jax.config.resolve import did_you_mean
from audiovae_jax.errors import ConfigError


def get_config(names: str = "") -> ml_collections.ConfigDict:
    """The base config, with the overrides of the configs in `names` ("lightweight,staged") in that order."""
    config = _base()
    given = list(filter(None, (name.strip() for name in names.split(","))))
    # A name that is given twice counts where it stands last.
    for name in [name for i, name in enumerate(given) if name not in given[i + 1 :]]:
        known = [m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if m.name != "base"]
        if name not in known:
            raise ConfigError(
                f"there is no config {name!r} to mix in{did_you_mean(name, known)}; there are {', '.join(known)}"
            )
        importlib.import_module(f"configs.{name}").override(config)
    return config


def _base():
    # Shared by several keys: setting one of them sets all.
    sample_rate = config_dict.FieldReference(44100)
    channels = config_dict.FieldReference(2)

    config = ml_collections.ConfigDict()
    config.num_steps = 1_000_000  # batches
    # Items, over all devices of all hosts. 1 runs anywhere; raise it to what yours hold: a training
    # step of this config takes 10 GB an item in float32 (XLA's figure on the CPU).
    config.batch_size = 1
    config.seed = 0  # of parameters, latent noise and crops
    config.validate_every = 1000  # steps
    config.checkpoint_every = 5000  # steps; each checkpoint is validated too, to find the best
    config.checkpoints_kept = 3  # the last ones; the best is kept besides
    config.max_failed_saves = 10  # checkpoints in a row that could not be written, on a full disk for one, end the run
    config.sample_every = 5000  # steps between samples: audio and spectrograms of validation audio, always the same
    # Steps between looks at the latent and the discriminator, on the validation crops, with warnings where
    # training goes wrong (audiovae_jax/run/README.md); 0 for none.
    config.diagnose_every = 1000
    config.use_adversarial = True
    config.generator_update_every = 1  # steps, while the discriminator is active
    config.discriminator_update_every = 1  # steps, while the discriminator is active
    # What to go on from in a new workdir, with all that it has: parameters, both optimizer states, the step. A
    # workdir (or one of its checkpoints) or a saved model, and the config may differ in all but the model, for
    # instance in num_steps; or a torch, Lightning or safetensors file, whose settings then replace those here.
    config.init_from = config_dict.placeholder(str)
    config.init_weights_only = False  # True takes the networks alone: step 0, fresh optimizers, and the settings here

    # Where a run is recorded, besides metrics.jsonl in the workdir (audiovae_jax/tracking/README.md).
    config.logging = ml_collections.ConfigDict()
    config.logging.writers = ("tensorboard",)  # and "mlflow", "wandb" (offline), if they are installed
    # A server or store; unset: MLFLOW_TRACKING_URI or, without that, mlflow.db beside the workdir.
    config.logging.mlflow_uri = config_dict.placeholder(str)
    config.logging.mlflow_experiment = "audiovae_jax"
    config.logging.wandb_project = "audiovae_jax"

    # An update whose loss or gradient is NaN or infinite is skipped.
    config.safety = ml_collections.ConfigDict()
    config.safety.max_skipped = 10  # of a network's updates in a row, before going back to the last checkpoint
    config.safety.max_rollbacks = 3  # in a run, each to other crops; after them it ends
    config.safety.kept_batches = 10  # that are kept as audio, of those that were skipped

    # The arguments of audiovae_jax.AudioVAE.
    config.model = ml_collections.ConfigDict()
    config.model.in_channels = channels
    config.model.base_channels = 128
    config.model.channel_mults = (1, 2, 4, 8)  # widths of the blocks, in base_channels
    config.model.strides = (2, 4, 4, 8)  # their product is the hop: 256 samples per latent frame
    config.model.latent_dim = 64
    config.model.kernel_size = 7  # of the residual units, odd
    config.model.dilations = (1, 3, 9)  # of the residual units in each block
    config.model.encoder_frozen = False  # True trains the decoder alone
    # True keeps only what lies between blocks and computes the rest of the model again for the gradient:
    # less memory for more time (audiovae_jax/benchmark/README.md).
    config.model.remat = False
    config.model.dtype = "float32"  # what convolutions compute in; "bfloat16" is faster on GPU and TPU

    # Any class with audio [B, T, C] -> (logits, feature_maps); the other keys are its arguments.
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
    config.discriminator.dtype = "float32"  # what convolutions compute in; STFTs stay float32
    config.discriminator.remat = False  # on GPUs, a fifth less memory for some more traffic

    # The arguments of audiovae_jax.AdversarialLossCalculator.
    config.adversarial = ml_collections.ConfigDict()
    config.adversarial.adversarial_weight = 1.0
    config.adversarial.feature_matching_weight = 10.0
    config.adversarial.warmup_steps = 0  # steps before the discriminator is run at all

    # Reconstruction losses by name: a dotted path, a weight, and the function's options.
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
    config.losses.stft.perceptual_weighting = True  # A-weighting
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
    config.losses.mel.convergence = "item"  # "batch" is the PyTorch system's, which depends on the split

    # The KL divergence of the latent from the standard normal.
    config.kl = ml_collections.ConfigDict()
    config.kl.weight = 1e-4
    config.kl.warmup_steps = 5000  # steps over which the weight rises from 0
    config.kl.free_bits = 0.0  # nats per latent element
    config.kl.reduction = "sum"  # over latents and time; "frame" divides by the frames, for any crop length

    # AdamW with a cosine schedule over num_steps, and a warm-up before its full rate.
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.learning_rate = 1.5e-4  # at step 0
    config.optimizer.final_learning_rate = 1e-5  # at num_steps
    # Steps over which the rate rises linearly to the cosine's; the discriminator's begin at adversarial.warmup_steps.
    config.optimizer.warmup_steps = 0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 1e-4  # decoupled, on every parameter
    config.optimizer.clip_norm = 1.0  # global gradient norm; 0 for none
    config.discriminator_optimizer = ml_collections.ConfigDict(config.optimizer.to_dict())
    config.discriminator_optimizer.learning_rate = 1e-4
    config.discriminator_optimizer.final_learning_rate = 1e-6

    config.data = ml_collections.ConfigDict()
    # A folder of audio, a manifest (.jsonl, .csv), shards, tars, MUSDB18-HQ or GTZAN, here or behind a URL (s3://,
    # gs://; AWS_ENDPOINT_URL names a server of one's own); several with commas between them are drawn from as one;
    # unset: the built-in generator.
    config.data.root = config_dict.placeholder(str)
    # What the validation crops are of, all of it, one root or several; nothing of root or mix is kept for them then.
    config.data.val_root = config_dict.placeholder(str)
    config.data.source = (
        "auto"  # what root is; auto recognises it: folder, manifest, shards, webdataset, musdb18, gtzan
    )
    config.data.mix = ()  # several roots in place of one: (("DIR", 2.0), ("built-in", 1.0)), each with its share
    config.data.sample_rate = sample_rate  # Hz; files of other rates are resampled
    config.data.channels = channels
    config.data.crop_length = 65536  # samples, a multiple of the hop
    config.data.min_seconds = 0.1  # shorter files are skipped; shorter than a crop is filled up
    config.data.padding = "zero"  # what fills them up: zero, or loop for the file again
    config.data.peak_normalize = True  # each crop to a peak of 1
    config.data.validation_fraction = 0.1  # of the files, by the hash of their names; at least 3 of 10 or more, else 1
    config.data.validation_crops = 8  # fixed crops per validation, rounded up to whole batches
    # Stretches of validation audio that are kept as audio and spectrograms, each of another file while there are any.
    config.data.num_samples = 4
    config.data.sample_seconds = 5.0  # of each, where files are so long
    config.data.fixed_batch = False  # True trains and validates on one batch for ever
    config.data.num_threads = 8  # that read and decode crops
    config.data.prefetch_batches = 8  # batches held ready, each read by a thread of its own
    config.data.mixture_share = 0.25  # of MUSDB18's crops; the others are of a single stem
    config.data.full_band_share = config_dict.placeholder(float)  # of crops, from files whose spectrum is full
    config.data.min_loudness_db = config_dict.placeholder(float)  # RMS in dBFS below which a crop is drawn anew
    config.data.augment = ml_collections.ConfigDict()  # of training crops, each decided by its own number
    config.data.augment.gain_db = (0.0, 0.0)  # range of a random gain
    config.data.augment.polarity_probability = 0.0
    config.data.augment.swap_probability = 0.0  # of the channels turned round
    config.data.max_bad_share = 0.5  # of the files; when more cannot be used, the run ends
    config.data.read_timeout = 60.0  # seconds, after which a file that does not answer is passed over; 0: never
    config.data.retry_seconds = 120.0  # for how long a failing request to a URL is tried again
    config.data.cache = config_dict.placeholder(str)  # folder that keeps what was fetched from URLs
    config.data.cache_gigabytes = 50.0
    config.data.index = True  # remember, in the user's cache folder, what files were found to be
    return config
