"""Published memory, peak rates and bandwidths of accelerators, with sources.

Times computed from these are lower bounds: no program is faster, and most are slower.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device as JAX counts it: a GPU, or a TPU chip.

    Attributes:
      name: as users type it.
      platform: of JAX, "cuda" or "tpu".
      memory_bytes: available to programs.
      peak_flops: dense operations per second by dtype, "bfloat16" and "float32". At JAX's default precision, float32 is
        multiplied in TF32 on these GPUs, and in bfloat16 on TPUs.
      memory_bandwidth: bytes per second.
      link_bandwidth: bytes per second that a device sends over the links within a host (NVLink) or slice (ICI).
      network_bandwidth: bytes per second that a device sends to another host; None if the links connect hosts too.
      source: of these numbers.
      device_kinds: JAX's names of these devices.
      target_config: XLA's description of a GPU, as a text proto.
    """

    name: str
    platform: str
    memory_bytes: int
    peak_flops: dict[str, float]
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float | None
    source: str
    device_kinds: tuple[str, ...]
    target_config: str = ""


def all_reduce_seconds(size: float, accelerator: Accelerator, hosts: int, per_host: int) -> float:
    """Lower bound of the time to sum `size` bytes over all devices.

    Every device sends `2 (n - 1) / n` of the bytes over the links. With several GPU hosts, devices first reduce within
    their host and then share the network traffic. Both phases may overlap, so the slower one counts.
    """
    if accelerator.network_bandwidth is None:
        return _sent(size, hosts * per_host) / accelerator.link_bandwidth
    inside = _sent(size, per_host) / accelerator.link_bandwidth
    between = _sent(size / per_host, hosts) / accelerator.network_bandwidth
    return max(inside, between)


def _sent(size, devices):
    return 2 * (devices - 1) / devices * size


def _gpu(memory_bytes, memory_bandwidth, description):
    # The format of XLA's gpu_specs. Hopper GPUs differ in memory only.
    return f"""gpu_device_info {{
  cuda_compute_capability {{ major: 9 minor: 0 }}
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  l2_cache_size: 52428800 memory_bandwidth: {memory_bandwidth} device_memory_size: {memory_bytes}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }} device_description_str: "{description}"
"""


_HOPPER = {
    "platform": "cuda",
    "peak_flops": {"bfloat16": 989.4e12, "float32": 494.7e12},
    "link_bandwidth": 450e9,
    "network_bandwidth": 50e9,
}
_NETWORK = "NVLink 900 GB/s both ways; network of a DGX: one ConnectX-7 of 400 Gb/s a GPU"
_LIBTPU = "memory available to programs by libtpu 0.0.42"
ACCELERATORS = {
    accelerator.name: accelerator
    for accelerator in (
        Accelerator(
            "h100",
            memory_bytes=84_978_434_048,
            memory_bandwidth=3.35e12,
            source=f"NVIDIA's H100 SXM data sheet; {_NETWORK} H100",
            device_kinds=("NVIDIA H100 80GB HBM3",),
            target_config=_gpu(84_978_434_048, 3_350_000_000_000, "NVIDIA H100 80GB HBM3"),
            **_HOPPER,
        ),
        Accelerator(
            "h200",
            memory_bytes=150_754_820_096,
            memory_bandwidth=4.8e12,
            source=f"NVIDIA's H200 SXM data sheet; {_NETWORK} H200",
            device_kinds=("NVIDIA H200",),
            target_config=_gpu(150_754_820_096, 4_800_000_000_000, "NVIDIA H200"),
            **_HOPPER,
        ),
        Accelerator(
            "v5e",
            platform="tpu",
            memory_bytes=int(15.75 * 2**30),
            peak_flops={"bfloat16": 197e12, "float32": 197e12},
            memory_bandwidth=819e9,
            link_bandwidth=200e9,
            network_bandwidth=None,
            source=f"Cloud TPU's page on v5e (ICI 400 GB/s both ways); {_LIBTPU}",
            device_kinds=("TPU v5 lite", "TPU v5e"),
        ),
        Accelerator(
            "v5p",
            platform="tpu",
            memory_bytes=int(95.74 * 2**30),
            peak_flops={"bfloat16": 459e12, "float32": 459e12},
            memory_bandwidth=2765e9,
            link_bandwidth=600e9,
            network_bandwidth=None,
            source=f"Cloud TPU's page on v5p (ICI 1,200 GB/s both ways); {_LIBTPU}",
            device_kinds=("TPU v5", "TPU v5p"),
        ),
        Accelerator(
            "v6e",
            platform="tpu",
            memory_bytes=int(31.25 * 2**30),
            peak_flops={"bfloat16": 918e12, "float32": 918e12},
            memory_bandwidth=1640e9,
            link_bandwidth=400e9,
            network_bandwidth=None,
            source=f"Cloud TPU's page on v6e (ICI 800 GB/s both ways); {_LIBTPU}",
            device_kinds=("TPU v6 lite", "TPU v6e"),
        ),
    )
}


def peak_flops_of(device: Any, dtype: str) -> float | None:
    """Return the published operations per second of a device, or None.

    `dtype` is that of the operations.
    """
    for accelerator in ACCELERATORS.values():
        if device.device_kind in accelerator.device_kinds:
            return accelerator.peak_flops.get(dtype)
    return None


def step_bounds(
    *,
    flops: float,
    bytes_moved: float,
    reduced_bytes: float,
    dtype: str,
    accelerator: Accelerator,
    hosts: int,
    per_host: int,
) -> dict[str, float]:
    """Lower bounds of a step's time in seconds, each as if it were the only cost.

    Args:
      flops: operations of one device and step.
      bytes_moved: memory traffic of one device and step.
      reduced_bytes: bytes summed over all devices.
      dtype: of most of the arithmetic.
      accelerator: the device.
      hosts: number of hosts.
      per_host: devices per host.

    Returns:
      A dict of `arithmetic`, `memory` and `collectives`.
    """
    peak = accelerator.peak_flops.get(dtype, max(accelerator.peak_flops.values()))
    return {
        "arithmetic": flops / peak,
        "memory": bytes_moved / accelerator.memory_bandwidth,
        "collectives": all_reduce_seconds(reduced_bytes, accelerator, hosts, per_host),
    }
