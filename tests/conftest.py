"""Shared set-up: four CPU devices, a config small enough to compile in seconds, golden data."""

import os
import shutil
import tempfile
from pathlib import Path

# Before jax starts: the tests are about numbers, not speed, so compiling is made cheap, and what one
# test (or a process that it starts) has compiled serves the others.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
_IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if not _IS_WORKER:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="audiovae_jax_tests_")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import ml_collections
import numpy as np
import pytest
import soundfile

jax.config.update("jax_num_cpu_devices", 4)

from audiovae_jax import configuration
from configs import base

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_sessionfinish():
    if not _IS_WORKER:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture
def micro_config() -> ml_collections.ConfigDict:
    """A whole run in miniature, of every kind of part."""
    config = base.get_config()
    config.num_steps = 2
    config.batch_size = 4
    config.validate_every = 1
    config.checkpoint_every = 1
    config.sample_every = 2
    config.model.base_channels = 4
    config.model.channel_mults = (1, 2)
    config.model.strides = (2, 4)
    config.model.latent_dim = 4
    config.model.dilations = (1, 3)
    config.discriminator.stft_filters = 2
    config.discriminator.n_ffts = (64,)
    config.discriminator.use_msd = False
    config.discriminator.mpd_periods = (2,)
    config.discriminator.mpd_channels = (2, 4)
    config.losses.stft.fft_sizes = (64,)
    config.losses.mel.fft_sizes = (256,)
    config.losses.mel.n_mels = (8,)
    config.data.crop_length = 1024
    config.data.num_samples = 1
    config.data.validation_crops = 4
    config.data.num_threads = 1
    return configuration.finalize(config, base.get_config())


@pytest.fixture
def audio_folder(tmp_path) -> Path:
    """Three good files of half a second: stereo wav, mono flac at another rate, stereo ogg."""
    folder = tmp_path / "audio"
    (folder / "deeper").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, rate, channels in (("a.wav", 44100, 2), ("deeper/b.flac", 22050, 1), ("c.ogg", 44100, 2)):
        soundfile.write(folder / name, 0.3 * rng.standard_normal((rate // 2, channels)), rate)
    return folder


def shared(name: str) -> Path:
    """A file of the seed's golden data, or a skip where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs {name} of the reference data, which is not part of the project")
    return path
