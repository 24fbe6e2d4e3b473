"""Start the processes of a run on this machine, and read their records."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

WORKER = Path(__file__).parent / "process_worker.py"
LOOPBACK = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as found:
        found.bind((LOOPBACK, 0))
        return found.getsockname()[1]


class Run:
    """The processes of one run, started at once.

    Args:
      folder: gets a log and a record of each, `<name>.<process>.log` and `.json`.
      config: of the run; `configs` gives some processes another.
      count, devices: processes, and devices of each.
      each: further settings of single processes, by process number. `environment` changes their environment; None
        removes a variable.
      train: arguments of `train.train`.
    """

    def __init__(
        self, folder, name, config, *, workdir=None, count=2, devices=2, each=None, train=None, configs=None, join=None
    ):
        self._folder, self._name = folder, name
        address = f"{LOOPBACK}:{free_port()}"
        self.processes = []
        for i in range(count):
            told = {
                "workdir": str(workdir or folder / name),
                "config": (configs or {}).get(i, config).to_dict(),
                "devices": devices,
                "record": str(self._path(i, "json")),
                "train": train or {},
                "join": {},
                **(each or {}).get(i, {}),
            }
            if count > 1:
                told["join"] = {"coordinator_address": address, "num_processes": count, "process_id": i, **(join or {})}
            with open(self._path(i, "log"), "w") as log:
                environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), **told.pop("environment", {})}
                environment = {name: value for name, value in environment.items() if value is not None}
                command = [sys.executable, str(WORKER), repr(told)]
                self.processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.kill()
            process.wait()

    def log(self, i: int) -> str:
        return self._path(i, "log").read_text(errors="replace")

    def record(self, i: int = 0) -> dict:
        return json.loads(self._path(i, "json").read_text())

    def wait(self, timeout: float = 300) -> list[int]:
        """The exit statuses, in order."""
        deadline = time.monotonic() + timeout
        return [process.wait(max(0, deadline - time.monotonic())) for process in self.processes]

    def wait_for(self, text: str, i: int = 0, timeout: float = 300):
        """Wait until the log of process `i` contains `text`."""
        deadline = time.monotonic() + timeout
        while text not in self.log(i):
            assert self.processes[i].poll() is None, self.log(i)
            assert time.monotonic() < deadline, self.log(i)
            time.sleep(0.02)

    def finished(self) -> "Run":
        """Wait, and check that all processes succeeded."""
        statuses = self.wait()
        assert not any(statuses), [self.log(i) for i in range(len(statuses))]
        return self

    def global_batches(self) -> dict[str, list[str]]:
        """Return the hashes of each global batch's rows in order, by step."""
        records = [self.record(i)["batches"] for i in range(len(self.processes))]
        return {step: [row for record in records for row in record[step]] for step in records[0]}

    def _path(self, i, ending):
        return self._folder / f"{self._name}.{i}.{ending}"
