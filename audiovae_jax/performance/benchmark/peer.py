"""Another system to compare with, in its own process."""

import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import ml_collections
import numpy as np

from audiovae_jax.config import configuration
from audiovae_jax.errors import ConfigError
from audiovae_jax.models.audio_vae import KIND_KEYS, AudioVAE

_PROGRAM = Path(__file__).resolve().parents[3] / "tests" / "torch_peer.py"
# By name in `--against`: the kind of job if it is fixed, and whether torch compiles the work.
SYSTEMS = {
    "torch": (None, False),
    "torch_compile": (None, True),
    "oobleck": ("oobleck", False),
    "oobleck_compile": ("oobleck", True),
}
# The settings of the torch system's step that a config could change.
_FOLLOWED = {
    "model.encoder_frozen": False,
    "discriminator._target_": "audiovae_jax.discriminators.EnCodecDiscriminator",
    "discriminator.use_cqt": False,
    "adversarial.loss": "hinge",
    "adversarial.r1_weight": 0.0,
    "adversarial.r2_weight": 0.0,
    "adversarial.ramp_steps": 0,
    "ema.decay": 0.0,
    "generator_update_every": 1,
    "discriminator_update_every": 1,
    "accumulation_steps": 1,
    "balancer_norm": 0.0,
    "latent_noise": 0.0,
    "optimizer.name": "adamw",
    "optimizer.learning_rate_factors": (),
    "discriminator_optimizer.name": "adamw",
    "kl.free_bits": 0.0,
    "kl.reduction": "sum",
    "kl.target_bits_per_second": None,
    "losses.stft.w_sum": 1.0,
    "losses.stft.w_diff": 1.0,
    "losses.stft.w_log1p_mag": 0.0,
    "losses.mel.hop_sizes": None,
    "losses.mel.win_lengths": None,
    "losses.mel.w_sc": 1.0,
    "losses.mel.w_log_mag": 1.0,
}
# Of its training, in addition.
_FOLLOWED_IN_TRAINING = {
    "model.dtype": "float32",
    "discriminator.dtype": "float32",
    "kl.cycle_steps": 0,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_steps": 0,
    "discriminator_optimizer.schedule": "cosine",
    "discriminator_optimizer.warmup_steps": 0,
    "init_from": None,
}


def check(system: str, kind: str, config: ml_collections.ConfigDict):
    """Check that a peer is known, installed, and able to run `config`.

    Raises:
      ConfigError: it is not.
    """
    if system not in SYSTEMS:
        raise ConfigError(f"--against={system} is unknown; choose from {', '.join(SYSTEMS)}")
    other, _ = SYSTEMS[system]
    if system != "torch" and kind == "learning":
        raise ConfigError(f"--against={system} is not for learning; use torch")
    if other is not None and kind == "step":
        raise ConfigError(f"--against={system} is for the codec; for the step use torch or torch_compile")
    if not _PROGRAM.exists():
        raise ConfigError(f"--against={system} needs the repository's {_PROGRAM.name}, which is not at {_PROGRAM}")
    for name in ("torch", "diffusers")[: 1 if other is None else 2]:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"--against={system} needs {name}, which is not installed: pip install {name}")
    model = config.model
    if other is not None:
        fixed = {"kernel_size": 7, "dilations": (1, 3, 9), "base_channels": 2 * model.latent_dim}
        for key, value in fixed.items():
            if list(np.atleast_1d(model[key])) != list(np.atleast_1d(value)):
                raise ConfigError(f"--against={system} has only models with config.model.{key}={value}")
    else:
        for key in KIND_KEYS:
            _require(config, f"model.{key}", getattr(AudioVAE, key))
    if kind == "codec":
        return
    for key, value in (_FOLLOWED | (_FOLLOWED_IN_TRAINING if kind == "learning" else {})).items():
        _require(config, key, value)


def _require(config, key, value):
    found = configuration.flatten(config).get(key, value)
    if found != value:
        raise ConfigError(f"the torch reference supports only config.{key}={value!r}, not {found!r}")


def check_devices(config: ml_collections.ConfigDict, against: list[str]):
    """Check that the devices can run `config` and can be compared.

    Raises:
      ConfigError: they cannot.
    """
    configuration.check(config, jax.device_count())
    if jax.process_count() > 1:
        raise ConfigError("benchmarks measure one process; start it without the others")
    # Several CPU devices are fine: they share the cores, as torch's threads do.
    if against and jax.device_count() > 1 and jax.devices()[0].platform != "cpu":
        raise ConfigError(f"--against compares single devices, but there are {jax.device_count()}; hide all but one")


class Peer:
    """A running peer process, as a context manager that kills it.

    Args:
      system: a key of `SYSTEMS`.
      kind: "step", "codec" or "learning".
      config: ours, which the peer follows.
      **job: further entries of the peer's job.

    Raises:
      ConfigError: the system is unknown, not installed, or cannot run this config.
    """

    def __init__(self, system: str, kind: str, config: ml_collections.ConfigDict, **job):
        check(system, kind, config)
        other, compiled = SYSTEMS[system]
        platform = jax.devices()[0].platform
        job |= {"kind": other or kind, "compile": compiled, "gpu": platform == "gpu"}
        job["config"] = configuration.plain(config)
        self._system = system
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            [sys.executable, str(_PROGRAM), json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        self.description = self._answer()
        if (platform == "cpu") != (self.description["device"] == "cpu"):
            self.__exit__()
            raise ConfigError(
                f"--against={system}: torch runs on {self.description['device']} and ours on {platform}; "
                "install a torch that can use the same device, or set JAX_PLATFORMS=cpu"
            )

    def run(self, work: str) -> dict:
        """Run `work` once; return `seconds`, `result` and the `peak_bytes` so far."""
        with contextlib.suppress(BrokenPipeError):  # the peer has ended; `_answer` reports why
            self._process.stdin.write(work + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            self._said.seek(0)
            said = self._said.read().strip().splitlines() or ["it printed nothing"]
            raise ConfigError(f"--against={self._system} ended: {said[-1]}")
        return json.loads(line)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._process.kill()
        self._process.communicate()
        self._said.close()
