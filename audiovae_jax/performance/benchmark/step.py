"""Step benchmark: time, share of the machine's ceilings, profile, and peers."""

import contextlib
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from audiovae_jax.config import build
from audiovae_jax.distributed import mesh
from audiovae_jax.errors import ConfigError
from audiovae_jax.performance.benchmark import measure
from audiovae_jax.performance.benchmark.peer import Peer
from audiovae_jax.performance.benchmark.profile import profile
from audiovae_jax.training import compilation, program
from audiovae_jax.training.program import Scalars
from audiovae_jax.training.state import create_state


@dataclasses.dataclass
class Step:
    """A compiled training step with a state and a batch to run it on.

    Attributes:
      compiled: the executable.
      flops: operations of one step on one device.
      state: after the last run.
      audio: the batch.
      scalars: the recipe's numbers.
      seconds: time to `initialise` the state and to `compile` the step.
    """

    compiled: Any
    flops: float
    state: Any
    audio: jax.Array
    scalars: Scalars
    seconds: dict[str, float]

    @classmethod
    def of(cls, config: ml_collections.ConfigDict) -> "Step":
        """Build and compile the step of a finalized config."""
        start = time.perf_counter()
        recipe = build.build_recipe(config)
        devices = mesh.make_mesh()
        scalars = program.place_scalars(recipe, devices)
        with compilation.sparing():
            state = jax.block_until_ready(create_state(recipe, devices, build.example_shape(config)))
        compilation.forget()  # as training does
        audio = mesh.place_batch(devices, 0.3 * jax.random.normal(jax.random.key(0), build.batch_shape(config)))
        initialised = time.perf_counter()
        mapped = program.map_step(recipe, devices, config.use_adversarial)
        compiled = compilation.compiled(mapped, state, audio, scalars)
        seconds = {"initialise": initialised - start, "compile": time.perf_counter() - initialised}
        # For GPUs, XLA does not count the work of library calls in the compiled program.
        counted = compiled if jax.devices()[0].platform == "cpu" else mapped.lower(state, audio, scalars)
        # Of a loop over parts of the batch, one is counted.
        flops = config.accumulation_steps * (counted.cost_analysis() or {}).get("flops", 0.0)
        return cls(compiled, flops, state, audio, scalars, seconds)

    def __call__(self):
        self.state, metrics = self.compiled(self.state, self.audio, self.scalars)
        return metrics, self.state.step

    def run(self) -> float:
        """Run one step; return the seconds it took."""
        return measure.timed(self)()

    def figures(self) -> dict:
        """Counts of the compiled step on one device.

        Returns:
          `flops`, `bytes` accessed, and `planned_bytes` of temporaries.
        """
        cost = self.compiled.cost_analysis() or {}
        memory = self.compiled.memory_analysis()
        return {
            "flops": self.flops,
            "bytes": cost.get("bytes accessed", 0.0),
            "planned_bytes": getattr(memory, "temp_size_in_bytes", 0),
        }


def run(config: ml_collections.ConfigDict, *, against: list[str], repeats: int, warmup: int, profiled: bool) -> dict:
    """Time the step of `config`, next to each system of `against`.

    Returns:
      A report: `ours` with its time, counts and shares of the machine's `ceilings`, one entry per peer, `ratios` of our
        time to theirs, and `ratio`, the first of these.
    """
    if (config.generator_update_every, config.discriminator_update_every) != (1, 1):
        raise ConfigError("steps must all be equal to be timed; set config.*_update_every=1")
    report = {"benchmark": "step", "machine": measure.machine(), "what": _describe(config)}
    with contextlib.ExitStack() as stack:
        peers = {name: stack.enter_context(Peer(name, "step", config)) for name in against}
        step = Step.of(config)  # before any measurement, so that an error in the config shows first
        report["ceilings"] = ceilings = measure.ceilings(jnp.dtype(config.model.dtype))
        work = {"ours": step.run}
        for name, peer in peers.items():
            work[name] = lambda peer=peer: peer.run("step")["seconds"]
        timings = measure.side_by_side(work, repeats=repeats, warmup=warmup)
        for name, peer in peers.items():
            report[name] = timings[name].summary() | peer.description
    ours = timings["ours"].summary() | step.figures() | {"compile_seconds": step.seconds["compile"]}
    for unit in ("flops", "bytes"):
        ours[f"{unit}_per_second"] = ours[unit] / ours["seconds"]
        ours[f"share_of_{unit}_ceiling"] = ours[f"{unit}_per_second"] / ceilings[unit]
    report["ours"] = ours
    report["ratios"] = {name: timings["ours"].over(timings[name]) for name in against}
    if against:
        report["ratio"] = report["ratios"][against[0]]
    if profiled:
        report["profile"] = profile(step, step.compiled)
    return report


def _describe(config):
    return (
        f"training step, {'with' if config.use_adversarial else 'without'} discriminator, base_channels "
        f"{config.model.base_channels}, {config.batch_size} x {config.data.crop_length} samples, {config.model.dtype}"
        + (f", discriminator {build.discriminator_dtype(config)}" if config.use_adversarial else "")
    )
