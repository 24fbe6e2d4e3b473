"""Compiles the train step for a target, and reads the compiler's analysis."""

import dataclasses
import time
from typing import Any

import jax
import ml_collections

from audiovae_jax.config import build, configuration
from audiovae_jax.distributed import mesh
from audiovae_jax.errors import PlanError
from audiovae_jax.performance.planning import hlo
from audiovae_jax.performance.planning.hlo import Collective
from audiovae_jax.performance.planning.targets import CPU, HERE, Target
from audiovae_jax.training import compilation
from audiovae_jax.training import program as training_program


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices to compile for.

    Attributes:
      kind: the maker's name.
      count: over all hosts.
      hosts: number of processes that they belong to.
      usable_bytes: memory of one device that a run may use; None if unknown.
    """

    kind: str
    count: int
    hosts: int
    usable_bytes: int | None

    @property
    def per_host(self) -> int:
        """Devices per host."""
        return self.count // self.hosts


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiler's plan of a step for one batch size; bytes are of one device.

    Attributes:
      batch_per_device: items.
      argument_bytes: state, batch, and the recipe's numbers.
      output_bytes: new state and metrics, except outputs that reuse the memory of arguments.
      temp_bytes: temporaries.
      code_bytes: the program, if it is in device memory.
      peak_bytes: peak memory, including code.
      bytes_moved: memory read and written in a step.
      bytes_moved_of: source of `bytes_moved`: "cost analysis" (the compiler's) or "entry instructions" (each counted
        alone).
      collectives: exchanges between devices.
      seconds: compile time, without tracing.
    """

    batch_per_device: int
    argument_bytes: int
    output_bytes: int
    temp_bytes: int
    code_bytes: int
    peak_bytes: int
    bytes_moved: int
    bytes_moved_of: str
    collectives: tuple[Collective, ...]
    seconds: float


class StepCompiler:
    """Compiles a config's step, with its discriminator if it has one, for a target.

    The process must have been started with the target's environment.

    Args:
      config: finalized.
      target: the devices to compile for.

    Raises:
      ConfigError: the config cannot work.
      PlanError: the compiler does not know the target.
    """

    def __init__(self, config: ml_collections.ConfigDict, target: Target):
        self._target = target
        found = find_devices(target)
        self._platform = {"gpu": "cuda"}.get(found[0].platform, found[0].platform)
        hosts = target.shape[0] if target.platform == "cuda" else len({device.process_index for device in found})
        self.devices = Devices(found[0].device_kind, len(found), hosts, usable_bytes(target, found))
        # The recipe does not depend on the batch. One that splits over these devices passes the check.
        self._config = ml_collections.ConfigDict(config)
        self.parts = config.accumulation_steps
        self._config.batch_size = self.devices.count * self.parts
        configuration.check(self._config, self.devices.count)
        self._recipe = build.build_recipe(self._config)
        self._mesh = mesh.make_mesh(found)
        self._state = training_program.abstract_state(self._recipe, self._mesh, build.example_shape(self._config))

    @property
    def state_bytes(self) -> int:
        """Bytes of the train state, as in a checkpoint."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self._state))

    def compile(self, batch_per_device: int) -> Compiled | None:
        """Compile the step for this many items per device and part.

        `config.accumulation_steps` is the number of parts.

        Returns:
          The compiled step, or None if the compiler runs out of device memory.

        Raises:
          PlanError: compiling failed.
        """
        try:
            with compilation.sparing():
                lowered = self._trace(self._mesh, batch_per_device).lower(lowering_platforms=(self._platform,))
                start = time.perf_counter()
                executable = lowered.compile()
                seconds = time.perf_counter() - start
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                return None
            raise PlanError(f"{self._target.name}: compiling failed: {str(error).splitlines()[0]}") from error
        return _read(executable, batch_per_device, self.parts, seconds, has_peak=self._platform == "tpu")

    def flops(self, batch_per_device: int) -> float:
        """Floating-point operations of a step on one device, before compilation.

        For GPUs, XLA does not count the work of library calls in a compiled program. The count needs a mesh of real
        devices, so one device of this machine stands in for the target's.
        """
        one = mesh.make_mesh(jax.devices()[:1])
        state = training_program.abstract_state(self._recipe, one, build.example_shape(self._config))
        with compilation.sparing():
            lowered = self._trace(one, batch_per_device, state).lower(lowering_platforms=(self._platform,))
        # The work of a loop over parts is counted once.
        return self.parts * float((lowered.cost_analysis() or {}).get("flops", 0.0))

    def _trace(self, devices, batch_per_device, state=None):
        adversarial = self._config.use_adversarial
        shape = (batch_per_device * self.parts * devices.size, *build.example_shape(self._config)[1:])
        step = training_program.map_step(self._recipe, devices, adversarial)
        batch = training_program.abstract_batch(devices, shape)
        scalars = training_program.abstract_scalars(self._recipe, devices)
        return step.trace(self._state if state is None else state, batch, scalars)


def find_devices(target: Target) -> list[Any]:
    """The target's devices: real ones, or descriptions that can be compiled for.

    Raises:
      PlanError: the compiler does not know the target.
    """
    if target.platform == CPU:
        jax.config.update("jax_num_cpu_devices", target.shape[1])
    if target.platform in (CPU, HERE):
        return jax.devices()
    from jax.experimental import topologies

    try:
        if target.platform == "cuda":
            jax.devices()  # makes JAX load its plugins
            shape = "x".join(str(number) for number in (1, *target.shape))
            options = {"topology": shape, "target_config": target.accelerator.target_config}
            found = topologies.get_topology_desc("", "cuda", **options)
        else:
            found = topologies.get_topology_desc(target.name, "tpu")
    except Exception as error:  # plugins raise exceptions of many types
        reason = str(error).splitlines()[0]
        raise PlanError(f"--target={target.name} is not supported by the installed compiler: {reason}") from error
    return list(found.devices)


def usable_bytes(target: Target, devices: list) -> int | None:
    """Memory in bytes of one device that a run may use; None if unknown.

    It is the published memory, the device's own limit, or for CPU devices an equal share of this machine's free memory.
    """
    if not target.is_here:
        return target.usable_bytes
    counted = devices[0].memory_stats() or {} if devices[0].platform != "cpu" else {}
    if counted.get("bytes_limit"):
        return counted["bytes_limit"]
    if devices[0].platform != "cpu":
        return None
    available = available_memory()
    return available and available // jax.local_device_count()


def available_memory() -> int | None:
    """Free or reclaimable memory of this machine in bytes; None if unknown."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def _read(executable, batch_per_device, parts, seconds, has_peak):
    memory = executable.memory_analysis()
    cost = executable.cost_analysis() or {}
    text = executable.as_text()
    # Of a loop over parts, one is counted here.
    moved, moved_of = parts * int(cost.get("bytes accessed", 0)), "cost analysis"
    if not moved:
        moved, moved_of = hlo.entry_traffic(text), "entry instructions"
    new_outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    # On TPUs, temporaries cover all memories, and the reported peak is that of the large one. Elsewhere temporaries are
    # one allocation, and the reported peak leaves out its gaps, or the whole allocation.
    peak = getattr(memory, "peak_memory_in_bytes", 0) if has_peak else 0
    if not peak:
        peak = memory.argument_size_in_bytes + new_outputs + memory.temp_size_in_bytes
    return Compiled(
        batch_per_device,
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=new_outputs,
        temp_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        peak_bytes=peak + memory.generated_code_size_in_bytes,
        bytes_moved=moved,
        bytes_moved_of=moved_of,
        collectives=tuple(hlo.collectives(text)),
        seconds=seconds,
    )
