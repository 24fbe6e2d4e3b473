"""The compiled programs of a run."""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax

from audiovae_jax.distributed.background import Background
from audiovae_jax.distributed.group import Group
from audiovae_jax.training import compilation, program
from audiovae_jax.training.step import Recipe


class Stopped(Exception):
    """Raised to stop the run without waiting for a background call.

    The text is the reason.
    """


class Programs:
    """Compiles the training step, validation and diagnosis when first needed.

    Each is compiled once without and once with the discriminator, in a background thread. With `may_stop`, a stop
    request raises `Stopped` without waiting for the compiler. Several programs may be compiled at the same time.

    Args:
      recipe: the run's recipe.
      devices: mesh of all devices.
      group: the run's processes, which stop together.
      timed: `timed(what)` is a context manager that reports how long its block takes.
      count_flops: whether to count the operations of the training step.

    Attributes:
      flops: floating-point operations of the newest training step on one device; None if not counted.
    """

    def __init__(self, recipe: Recipe, devices, group: Group, timed: Callable, *, count_flops: bool = False):
        self._recipe, self._mesh, self._group, self._timed = recipe, devices, group, timed
        self._count_flops, self.flops = count_flops, None
        self._scalars = program.place_scalars(recipe, devices)
        self._compiled: dict[tuple[str, bool], Background] = {}
        self._shared: set[tuple[str, bool]] = set()  # programs that all processes have compiled

    def begin_step(self, at: int, state, batch):
        """Start to compile the step that follows `at` steps, if it has not started.

        `batch` may be a shape.
        """
        adversarial = self._is_adversarial(at)
        self._begin("the step", adversarial, program.map_step, (adversarial,), (state, batch))

    def step(self, at: int, state, batch, *, may_stop: bool = False) -> Callable:
        """Return `train_step(state, batch)` of the step that follows `at` steps."""
        adversarial = self._is_adversarial(at)
        return self._program("the step", adversarial, program.map_step, (adversarial,), (state, batch), may_stop)

    def validation(self, variables, rows, *, may_stop: bool = False) -> Callable:
        """Return `validate(variables, rows)`."""
        return self._program("the validation", False, program.map_validation, (), (variables, rows), may_stop)

    def diagnosis(self, at: int, state, rows, *, may_stop: bool = False) -> Callable:
        """Return `diagnose(state, rows)` of the last of `at` steps."""
        adversarial = self._is_adversarial(at - 1)
        return self._program(
            "the diagnosis", adversarial, program.map_diagnosis, (adversarial,), (state, rows), may_stop
        )

    def _is_adversarial(self, at):
        return self._recipe.adversarial is not None and self._recipe.adversarial.is_active(at)

    def _begin(self, name, adversarial, mapped, options, arguments):
        key = (name, adversarial)
        if key not in self._compiled:
            function = functools.partial(mapped, self._recipe, self._mesh, *options)
            count = self._set_flops if self._count_flops and name == "the step" else None
            # Shapes only, since the step donates its state to the next one while others are compiled.
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arguments)
            self._compiled[key] = Background(
                lambda: compilation.compiled(function(), *shapes, self._scalars, count=count)
            )
        return self._compiled[key]

    def _program(self, name, adversarial, mapped, options, arguments, may_stop):
        key = (name, adversarial)
        # Not whether this process has compiled it: the processes must agree on a stop equally often.
        if key not in self._shared:
            call = self._begin(name, adversarial, mapped, options, arguments)
            what = f"compiling {name}" + (" with discriminator" if adversarial else "")
            with self._group.progress.phase("compiling"), self._timed(what) if call.is_alive() else nullcontext():
                wait_for(call, self._group, may_stop)
            # Gloo ends a run if a process waits 30 seconds for another's first collective.
            self._group.meet(f"compiled/{name}/{adversarial}")
            self._shared.add(key)
        compiled = self._compiled[key].result()
        return lambda *arguments: compiled(*arguments, self._scalars)

    def _set_flops(self, flops):
        self.flops = flops


def wait_for(call: Background, group: Group, may_stop: bool) -> Any:
    """Return the result of a background call.

    Raises:
      Stopped: with `may_stop`, the processes were asked to stop before the call ended.
    """
    if may_stop and (reason := group.stop_reason_after(call)) is not None:
        raise Stopped(reason)
    return call.result()
