"""Another system in a process of its own, timed in turn with ours."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import ml_collections

from audiovae_jax import configuration
from audiovae_jax.errors import ConfigError

_PROGRAM = Path(__file__).resolve().parents[2] / "tests" / "torch_peer.py"
# Names of `--against`: what the peer does for the step and for the codec, and whether torch compiles it.
SYSTEMS = {"torch": (None, False), "torch_compile": (None, True), "oobleck": ("oobleck", False)}


class Peer:
    """A running peer; a context that ends it.

    Args:
      system: a key of `SYSTEMS`.
      kind: "step" or "codec".
      config: ours, which the peer follows.
      **job: what else it needs to know.

    Raises:
      ConfigError: the system is not known or not installed, or cannot do this config.
    """

    def __init__(self, system: str, kind: str, config: ml_collections.ConfigDict, **job):
        if system not in SYSTEMS:
            raise ConfigError(f"--against={system}: there are {', '.join(SYSTEMS)}")
        other, compiled = SYSTEMS[system]
        if other is not None and kind == "step":
            raise ConfigError(f"--against={system} is for the codec; for the step use torch or torch_compile")
        if not _PROGRAM.exists():
            raise ConfigError(f"--against={system} needs the repository's {_PROGRAM.name}, which is not at {_PROGRAM}")
        job |= {"kind": other or kind, "compile": compiled, "gpu": jax.devices()[0].platform == "gpu"}
        job["config"] = json.loads(configuration.to_json(config))
        self._system = system
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed when the peer ends)
        self._process = subprocess.Popen(
            [sys.executable, str(_PROGRAM), json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        self.description = self._answer()

    def run(self, work: str) -> dict:
        """Do `work` once: `seconds`, and the peak memory so far in `peak_bytes`."""
        self._process.stdin.write(work + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            self._said.seek(0)
            said = self._said.read().strip().splitlines() or ["it said nothing"]
            raise ConfigError(f"--against={self._system} ended: {said[-1]}")
        return json.loads(line)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._process.kill()
        self._process.communicate()
        self._said.close()
