"""Profile of a compiled function by part of the network and direction."""

import collections
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (?:.*?op_name=\"([^\"]*)\")?", re.MULTILINE)
# The flax modules in an operation's path that identify parts of the networks.
_MODULES = r"encoder|decoder|msstft|msd|mpd|mel_stft|cqt|(?:blocks|discriminators)_\d+"
_PART = re.compile(rf"(?<![\w.])({_MODULES})(?=/|\.(?:discriminate|each_view)/)")


def profile(run: Callable, compiled) -> list[dict]:
    """Run once under XLA's profiler.

    Args:
      run: calls `compiled`.
      compiled: the executable. Its operations carry the names of the modules they come from.

    Returns:
      Entries with `part`, `direction` ("forward" or "backward") and `share`, largest first. Shares are of the total
      time of all operations. Concurrent operations each count in full, so shares are a guide only.
    """
    names = dict(_INSTRUCTION.findall(compiled.as_text()))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        files = list(Path(folder).rglob("*.xplane.pb"))
        seconds = _operations(files[0], names) if files else {}
    taken = collections.Counter()
    for operation, spent in seconds.items():
        taken[_part(names[operation])] += spent
    total = sum(taken.values()) or 1.0
    return [
        {"part": part, "direction": direction, "share": spent / total}
        for (part, direction), spent in taken.most_common()
    ]


def _operations(file, names):
    """Nanoseconds from start to end of each HLO operation in `names`."""
    taken, begun, ended = collections.Counter(), {}, {}
    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    for plane in [plane for plane in planes if plane.name.startswith("/device:")] or planes:
        lines = list(plane.lines)
        # Accelerators list their work twice: by stream, and by operation.
        for line in [line for line in lines if line.name == "XLA Ops"] or lines:
            for event in line.events:
                if event.name.startswith("end: "):
                    ended[event.name.removeprefix("end: ")] = event.start_ns
                    continue
                operation = event.name
                if operation not in names and plane.name.startswith("/device:"):
                    operation = dict(event.stats).get("hlo_op")  # a kernel's name is not its operation's
                if operation in names:
                    taken[operation] += event.duration_ns
                    begun[operation] = event.start_ns
    # On CPUs, an operation that finishes on other threads, such as a convolution, has a separate end event.
    for operation, start in begun.items():
        taken[operation] = max(taken[operation], ended.get(operation, start) - start)
    return taken


def _part(name):
    if not name:
        return "copies and transposes by the compiler", ""
    direction = "backward" if "transpose(" in name else "forward"
    modules = list(dict.fromkeys(_PART.findall(name)))
    return "/".join(modules) or "losses and optimizers", direction
