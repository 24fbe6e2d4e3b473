"""Plans a run: the cost of its train step on each target."""

import dataclasses
import platform
import time
from collections.abc import Callable

import jax
import jaxlib
import ml_collections

from audiovae_jax.config import build
from audiovae_jax.errors import PlanError
from audiovae_jax.performance.planning import accelerators, search
from audiovae_jax.performance.planning.compiling import Compiled, Devices
from audiovae_jax.performance.planning.targets import Target
from audiovae_jax.performance.planning.worker import Worker


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of planning itself.

    Attributes:
      compiles: maximum number of compiles per target, including the first.
      host_memory: memory of this machine in bytes for each compiling process; None for no limit.
      seconds: maximum duration of each compile.
    """

    compiles: int
    host_memory: int | None
    seconds: float


def plan(config: ml_collections.ConfigDict, targets: list[Target], limits: Limits, say: Callable[[str], None]) -> dict:
    """Compile the step of `config` for every target, and report the compiler's plan.

    Args:
      config: finalized. If its batch cannot be split over a target's devices, one item per device is planned.
      targets: the devices to compile for.
      limits: of the planning itself.
      say: called with a line of progress.

    Returns:
      A report of JSON types: `what`, `date`, `versions`, and `targets` by name. If planning a target was stopped or
        refused, its entry has the reason as `error`, next to the results so far.

    Raises:
      ConfigError: a compiler is not installed, or the config cannot work on any target.
    """
    for target in targets:
        target.require_installed()
    found = {}
    for number, target in enumerate(targets, 1):
        prefix = f"[{number}/{len(targets)}] {target.name}: "
        found[target.name] = entry = {}
        try:
            _fill(entry, config, target, limits, lambda text, prefix=prefix: say(prefix + text))
        except PlanError as error:
            entry["error"] = str(error)
            say(f"[{number}/{len(targets)}] {error}")
    return {
        "what": describe(config),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "jaxlib": jaxlib.__version__},
        "targets": found,
    }


def describe(config: ml_collections.ConfigDict) -> str:
    """Describe the planned step in one line."""
    discriminator = f"discriminator {build.discriminator_dtype(config)}" if config.use_adversarial else ""
    return (
        f"training step {'with' if config.use_adversarial else 'without'} discriminator, base_channels "
        f"{config.model.base_channels}, crops of {config.data.crop_length} samples, model {config.model.dtype}"
        + (f", {discriminator}" if discriminator else "")
        + (", remat" if config.model.remat else "")
        + (f", {config.accumulation_steps} parts one after the other" if config.accumulation_steps > 1 else "")
    )


def _fill(entry, config, target, limits, say):
    start = time.perf_counter()
    with Worker(config, target, limits.host_memory, limits.seconds) as worker:
        devices = worker.devices
        parts = devices.count * config.accumulation_steps
        splits = config.batch_size % parts == 0
        batch = config.batch_size // parts if splits else 1
        entry |= dataclasses.asdict(devices) | {
            "batch_size": config.batch_size,
            "parts": config.accumulation_steps,
            "batch_per_device": batch,  # of a part
            "checkpoint_bytes": worker.state_bytes,
            "largest_batch_per_device": None,
            "search_ended": False,
            "compiled": [],
        }
        say(f"{devices.count} x {devices.kind}, {worker.state_bytes / 1e9:.2f} GB of state; tracing")
        if not splits:
            say(f"config.batch_size={config.batch_size} cannot be split over {parts}; planning 1 item for each")
        known = {}

        def peak(size):
            compiled = _compile(worker, size, entry, say)
            if compiled is None:
                return None
            if "figures_of_batch" not in entry:  # the config's batch, or the first that fits the compiler
                entry.update(_figures(compiled))
                entry["flops"] = worker.flops(size)
                entry.update(_bounds(entry, config, target, devices))
            return compiled.peak_bytes

        try:
            known[batch] = peak(batch)
            entry["fits"] = _fits(known[batch], devices.usable_bytes)
            if devices.usable_bytes is not None:
                _, entry["search_ended"] = search.largest_batch(
                    peak, known=known, fixed_bytes=worker.state_bytes, usable_bytes=devices.usable_bytes,
                    compiles=limits.compiles - 1,
                )  # fmt: skip
        finally:  # results so far are kept if planning is stopped
            if known and devices.usable_bytes is not None:
                entry["largest_batch_per_device"], _ = search.bracket(known, devices.usable_bytes)
            entry["host_peak_bytes"] = worker.host_peak_bytes
            entry["planning_seconds"] = time.perf_counter() - start


def _compile(worker, size, entry, say) -> Compiled | None:
    each = "per device and part" if entry["parts"] > 1 else "per device"
    say(f"compiling for {size} item{'s' * (size > 1)} {each}")
    compiled = worker.compile(size)
    if compiled is None:
        say(f"{size} {each}: the compiler ran out of device memory")
        entry["compiled"].append({"batch_per_device": size, "peak_bytes": None, "seconds": None})
        return None
    say(f"{size} {each}: peak {compiled.peak_bytes / 1e9:.2f} GB, compiled in {compiled.seconds:.0f} s")
    entry["compiled"].append(
        {"batch_per_device": size, "peak_bytes": compiled.peak_bytes, "temp_bytes": compiled.temp_bytes,
         "bytes_moved": compiled.bytes_moved, "seconds": compiled.seconds}
    )  # fmt: skip
    return compiled


def _fits(peak_bytes, usable_bytes):
    if usable_bytes is None:
        return None
    return peak_bytes is not None and peak_bytes <= usable_bytes


def _figures(compiled: Compiled) -> dict:
    figures = dataclasses.asdict(compiled)
    figures["figures_of_batch"] = figures.pop("batch_per_device")
    figures["compile_seconds"] = figures.pop("seconds")
    figures["collectives"] = [dataclasses.asdict(collective) for collective in compiled.collectives]
    return figures


def _bounds(entry, config, target: Target, devices: Devices) -> dict:
    """Lower bounds of the step time, and the crops per second at that speed."""
    if target.accelerator is None:
        return {}
    bounds = accelerators.step_bounds(
        flops=entry["flops"],
        bytes_moved=entry["bytes_moved"],
        reduced_bytes=sum(collective["bytes"] for collective in entry["collectives"]),
        dtype=config.model.dtype,
        accelerator=target.accelerator,
        hosts=devices.hosts,
        per_host=devices.per_host,
    )
    crops = entry["figures_of_batch"] * devices.count * config.accumulation_steps
    return {
        "bound_seconds": bounds,
        "crops_per_second_at_most": crops / max(bounds.values()),
        "source": target.accelerator.source,
    }
