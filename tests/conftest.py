"""Shared set-up: four CPU devices, a config small enough to compile in seconds, golden data."""

import contextlib
import functools
import gc
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Set before jax starts. The tests check numbers, not speed, so compiling is made cheap. Tests and the processes that
# they start share compiled programs.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if "XLA_FLAGS" not in os.environ:
    flags = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    # These halve the compile time, but only some releases have them. XLA aborts on unknown flags and names them, so
    # another process tries them first.
    newer = ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
    trial = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env={**os.environ, "XLA_FLAGS": " ".join(flags + newer)}, capture_output=True, text=True,
    )  # fmt: skip
    flags += [flag for flag in newer if trial.returncode == 0 or flag not in trial.stderr]
    os.environ["XLA_FLAGS"] = " ".join(flags)
if not _IS_WORKER:
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="audiovae_jax_tests_")
    # Set it to reuse compiled programs in the next run.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(os.environ["XDG_CACHE_HOME"], "xla"))
    # Killed processes leave temporary files. pytest's own files stay in their usual folder.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    tempfile.tempdir = os.environ["TMPDIR"] = os.path.join(os.environ["XDG_CACHE_HOME"], "tmp")
    os.mkdir(tempfile.tempdir)
# Small programs too: a run starts with 80 of them, and clears jax's caches of its process.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

gc.set_threshold(100_000, 50, 100)  # tracing creates many objects: the default collects for a tenth of the time

import jax
import ml_collections
import numpy as np
import pytest
import soundfile

jax.config.update("jax_num_cpu_devices", 4)

from audiovae_jax.commands import process
from audiovae_jax.config import configuration
from audiovae_jax.errors import ConfigError
from audiovae_jax.performance.planning import targets
from audiovae_jax.run import train
from configs import base

pytest_plugins = ["s3", "hub_server"]  # fixtures of a bucket, and of a hub
process.drop_orbax_log_lines()  # as in every command: on a full disk, its log lines would fail too

GOLDEN = Path(__file__).parent / "golden"


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # collections while tests run pass over their own objects only


def pytest_sessionfinish():
    # pytest collects garbage after a worker has reported its end. From then on, execnet waits five seconds before it
    # raises KeyboardInterrupt there. So the long collection is here, and the one that follows has nothing to do.
    gc.collect()
    gc.freeze()
    if not _IS_WORKER:
        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


# The default structure with narrow layers: every dilation, the kernel of 7, several sub-discriminators of each kind.
# Each command and each page's blocks are tested with it at least once.
SMALL_MODEL = {"base_channels": 2, "channel_mults": (1, 2), "strides": (2, 4), "latent_dim": 3}
SMALL_DISCRIMINATOR = {
    "stft_filters": 1,
    "n_ffts": (256, 128),
    "msd_scales": (1, 2),
    "mpd_periods": (2, 3),
    "mpd_channels": (2, 4),
}


# The arguments that make `AudioVAE` a model of another family.
KINDS = {
    "oobleck": {"activation": "snake_beta", "posterior": "softplus", "padding": "ceil", "final_bias": False},
    "elu": {"activation": "elu", "posterior": "softplus", "padding": "ceil", "final_tanh": True},
    "dac": {"in_channels": 1, "posterior": "none", "padding": "ceil", "final_tanh": True,
            "decoder_base_channels": 5},
    "dacvae": {"in_channels": 1, "posterior": "softplus", "final_tanh": True, "decoder_base_channels": 5,
               "bottleneck_channels": 4},
}  # fmt: skip


# Micro shapes, here and in other tests, have one block, a dilation of 1 or a single sub-discriminator. They test
# features that do not depend on the architecture: files, checkpoints, resuming, logging, scheduling. Features that
# trace, lower, export or plan a network need the default structure (above) in at least one test.
def _micro_config():
    config = base.get_config()
    config.num_steps = 2
    config.batch_size = 4
    config.validate_every = 1
    config.checkpoint_every = 1
    config.sample_every = 2
    config.diagnose_every = 0  # this compiles a third network
    config.optimizer.final_learning_rate = config.optimizer.learning_rate
    config.discriminator_optimizer.final_learning_rate = config.discriminator_optimizer.learning_rate
    config.model.base_channels = 4
    config.model.channel_mults = (1,)
    config.model.strides = (8,)
    config.model.latent_dim = 4
    config.model.dilations = (1,)
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
    config.data.sample_seconds = 0.1
    config.data.validation_crops = 4
    config.data.num_threads = 1
    return configuration.finalize(config, base.get_config())


@pytest.fixture
def micro_config() -> ml_collections.ConfigDict:
    """A config of a small run, with every kind of part."""
    return _micro_config()


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    """`(workdir, config, final state)` of the small run, on four devices; read-only.

    The first worker runs it for all workers.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if _IS_WORKER else base) / "trained"
    state, ended = folder / "state.pickle", folder / "ended"
    try:
        folder.mkdir()
    except FileExistsError:
        while not ended.exists():
            time.sleep(0.1)
        assert state.exists(), "another worker's run has failed"
    else:
        try:
            trained = jax.device_get(train.train(_micro_config(), folder / "run"))
            state.write_bytes(pickle.dumps(trained))
        finally:
            ended.touch()
    return folder / "run", _micro_config(), pickle.loads(state.read_bytes())


@pytest.fixture
def audio_folder(tmp_path) -> Path:
    """Three good files of half a second: stereo wav, mono flac at another rate, stereo ogg."""
    folder = tmp_path / "audio"
    (folder / "deeper").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, rate, channels in (("a.wav", 44100, 2), ("deeper/b.flac", 22050, 1), ("c.ogg", 44100, 2)):
        soundfile.write(folder / name, 0.3 * rng.standard_normal((rate // 2, channels)), rate)
    return folder


@pytest.fixture
def full_disk():
    """A context manager that limits the size of files, as a full disk does."""
    resource = pytest.importorskip("resource")

    @contextlib.contextmanager
    def limited(size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


def random_variables(model, seed: int = 0) -> dict:
    """Random variables of a model, so that every parameter matters, without compiling its initialisation."""
    rng = np.random.default_rng(seed)

    def fill(path, shape):
        alpha = 0.0 if getattr(model, "activation", None) == "snake_beta" else 1.0  # of a logarithm, or of alpha itself
        near = {"alpha": alpha, "g": 0.5, "latent_std": 1.0}.get(path[-1].key, 0.0)
        scale = 0.3 if path[-1].key == "v" else 0.1
        return jax.numpy.asarray((near + scale * rng.standard_normal(shape.shape)).astype(np.float32))

    return jax.tree_util.tree_map_with_path(fill, model.shapes())


@functools.cache
def _jitted(module, method, options):
    return jax.jit(functools.partial(getattr(module, method), **dict(options)))


def applied(module, variables, *args, **options):
    """Return `module.apply`'s result, compiled as one program instead of one per operation."""
    static = {name: options.pop(name) for name in ("deterministic", "method") if name in options}
    return _jitted(module, "apply", tuple(static.items()))(variables, *args, **options)


def initialised(module, audio, **options):
    """Return a module's variables from seed 0, compiled as one program."""
    return _jitted(module, "init", tuple(options.items()))(jax.random.key(0), audio)


def plannable(name: str) -> targets.Target:
    """Return a target of plans, or skip the test if its compiler is not installed."""
    (target,) = targets.parse([name])
    try:
        target.require_installed()
    except ConfigError as error:
        pytest.skip(str(error))
    return target
