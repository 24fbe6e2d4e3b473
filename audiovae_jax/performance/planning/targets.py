"""Targets of a plan: `h200:2x8`, `v5e:4x4`, `cpu:8`, `here`.

Each has the environment and the packages that compiling for it needs.
"""

import dataclasses
import importlib.util
import math
import os
import re

from audiovae_jax.config.resolve import did_you_mean
from audiovae_jax.errors import ConfigError
from audiovae_jax.performance.planning.accelerators import ACCELERATORS, Accelerator

HERE, CPU = "here", "cpu"
# The variable for the fraction of a GPU's memory that JAX allocates, and its default.
_FRACTION, _DEFAULT_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION", 0.75
_PLUGINS = {
    "cuda": ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12"),
    "tpu": ("libtpu",),
}
# With glibc's defaults, one arena per thread keeps most memory that libtpu frees. Compiling `base.py` in bfloat16 for a
# v5e took 11.6 GB of host memory with them, and takes 9.9 GB with these.
_SPARING_MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
      name: as given.
      platform: "cuda" or "tpu", or "cpu" or "here" for this machine's devices.
      shape: hosts x devices of GPUs, a slice's topology of TPUs, `(1, devices)` of CPUs; empty for `here`.
      accelerator: None for this machine's devices.
    """

    name: str
    platform: str
    shape: tuple[int, ...] = ()
    accelerator: Accelerator | None = None

    @property
    def is_here(self) -> bool:
        """Whether the devices are this machine's."""
        return self.accelerator is None

    @property
    def usable_bytes(self) -> int | None:
        """Memory of a device that a run can use; None for this machine's devices."""
        if self.accelerator is None:
            return None
        share = memory_fraction() if self.platform == "cuda" else 1.0
        return int(share * self.accelerator.memory_bytes)

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for the process that compiles."""
        if self.platform == HERE:
            return {}
        # The devices are absent, or must not be touched. Warnings about that would not help.
        changes = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
        if self.platform == "cuda":
            # Autotuning needs a device.
            changes["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip()
        if self.platform == "tpu":
            changes |= {
                "TPU_SKIP_MDS_QUERY": "1",
                "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # libtpu requires a value; the topology decides
                "TPU_WORKER_HOSTNAMES": "localhost",
                "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
                "TPU_LOG_DIR": "disabled",
                "TPU_STDERR_LOG_LEVEL": "3",
            }
            changes |= {name: os.environ.get(name, value) for name, value in _SPARING_MALLOC.items()}
        return changes

    def require_installed(self):
        """Check that the compiler for this target is installed.

        Raises:
          ConfigError: it is not. The message names the extra to install.
        """
        if self.platform in _PLUGINS and not any(map(_is_installed, _PLUGINS[self.platform])):
            raise ConfigError(
                f"--target={self.name} needs the compiler for {self.platform}, which is not installed: "
                f"pip install 'audiovae_jax[{self.platform}]' (in a clone: pip install -e '.[{self.platform}]')"
            )


def parse(names: list[str]) -> list[Target]:
    """Parse the targets of `--target=h200:2x8,v5e:4x4`.

    Raises:
      ConfigError: a target is unknown, has an invalid shape, or is given twice.
    """
    targets = [_parse(name.strip().lower()) for name in names if name.strip()]
    if not targets:
        raise ConfigError(f"--target is empty; give for example {_example()}")
    if len({target.name for target in targets}) < len(targets):
        raise ConfigError(f"--target={','.join(names)} contains a target twice")
    return targets


def memory_fraction() -> float:
    """The fraction of a GPU's memory that JAX allocates.

    Raises:
      ConfigError: the environment variable is not a number above 0 and at most 1.
    """
    given = os.environ.get(_FRACTION, _DEFAULT_FRACTION)
    try:
        fraction = float(given)
    except ValueError:
        fraction = math.nan
    if not 0 < fraction <= 1:
        raise ConfigError(f"{_FRACTION}={given} must be a number above 0, at most 1")
    return fraction


def _parse(name):
    kind, colon, shape = name.partition(":")
    if kind == HERE and not colon:
        return Target(name, HERE)
    if kind != CPU and kind not in ACCELERATORS:
        known = [*ACCELERATORS, CPU, HERE]
        raise ConfigError(
            f"--target={name}: there is no target {kind!r}{did_you_mean(kind, known)}; choose from {', '.join(known)}"
        )
    platform = CPU if kind == CPU else ACCELERATORS[kind].platform
    if not colon and platform != "tpu":
        shape = "1"
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise ConfigError(f"--target={name} must have a shape of whole numbers, for instance {_example()}")
    numbers = tuple(int(number) for number in shape.split("x"))
    if platform != "tpu":
        numbers = (1, *numbers) if len(numbers) == 1 else numbers
        if len(numbers) != 2 or (platform == CPU and numbers[0] != 1):
            takes = "devices, such as cpu:8" if platform == CPU else f"hosts x devices, such as {kind}:2x8"
            raise ConfigError(f"--target={name}: the shape of {kind} must be {takes}")
    return Target(name, platform, numbers, ACCELERATORS.get(kind))


def _example():
    return "h200:2x8 (hosts x GPUs), v5e:4x4 (a TPU slice), cpu:8 or here"


def _is_installed(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
