"""A healthy set-up, and broken ones."""

import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from conftest import random_variables

from audiovae_jax import AudioVAE, save_model
from audiovae_jax.config import configuration
from audiovae_jax.errors import CheckpointError
from audiovae_jax.performance.planning import doctor
from audiovae_jax.performance.planning.compiling import StepCompiler
from audiovae_jax.performance.planning.doctor import FAILED, OK, SKIPPED


@pytest.fixture
def small(micro_config):
    micro_config.use_adversarial = False
    return micro_config


def _examine(config, workdir, **options):
    checks = doctor.examine(config, workdir, compile_step=False, **options)
    return {check.name: check for check in checks}


def _failed(checks):
    return [name for name, check in checks.items() if check.status == FAILED]


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_healthy_machine(micro_config, tmp_path, audio_folder, whole):
    micro_config.data.root = str(audio_folder)
    micro_config.use_adversarial = whole
    checks = doctor.examine(micro_config, tmp_path / "run", compile_step=whole)
    statuses = dict.fromkeys(
        ("devices", "config", "data", "processes", "memory", "disk", "checkpoint", "workdir"), OK
    ) | ({} if whole else {"memory": SKIPPED})
    assert {check.name: check.status for check in checks} == statuses
    found = {check.name: check.result for check in checks}
    assert f"{jax.device_count()} x cpu" in found["devices"]
    assert "2 to train on" in found["data"]
    assert "hop 8, crops of 1024 samples, 2 channel(s), 44100 Hz" in found["config"]
    assert "checksums equal" in found["checkpoint"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audio"]  # nothing is left behind
    assert doctor.lines(checks)[-1] == "ready: no check failed"


@pytest.mark.parametrize("holder", [None, "other process", "other user"])
def test_the_lock_file_of_a_tpu_is_named(small, tmp_path, monkeypatch, holder):
    lock = tmp_path / "libtpu_lockfile"
    lock.write_text("")
    monkeypatch.setattr(doctor, "_TPU_LOCK", lock)

    def fail():
        raise RuntimeError("Unable to initialize backend 'tpu': ABORTED: The TPU is in use\nby a process")

    monkeypatch.setattr(jax, "devices", fail)
    remedy = f"no process holds {lock}, so it is stale. rm {lock}"
    process = None
    if holder == "other process":
        remedy = f"another process uses the TPU and holds {lock}. Find it with sudo fuser -v {lock}, and end it"
        code = (
            "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
        )
        process = subprocess.Popen([sys.executable, "-uc", code, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process.stdout.readline()
    elif holder == "other user":
        remedy = f"{lock} is another user's. If none of their processes uses the TPU, sudo rm {lock}"
        monkeypatch.setattr(type(lock), "open", lambda *args: (_ for _ in ()).throw(PermissionError))
    (check,) = _examine(small, tmp_path).values()
    assert (check.name, check.status, check.remedy) == ("devices", FAILED, remedy)
    assert check.result == "JAX finds no device: Unable to initialize backend 'tpu': ABORTED: The TPU is in use"
    if process is not None:
        process.communicate(b"\n")


def test_no_data(small, tmp_path):
    small.data.root = str(tmp_path / "nowhere")
    checks = _examine(small, tmp_path / "run")
    assert _failed(checks) == ["data"]
    assert "there is no such folder" in checks["data"].result


def test_a_disk_that_is_too_small(small, tmp_path):
    checks = _examine(small, tmp_path / "run", free=lambda path: 1000)
    assert _failed(checks) == ["disk"]
    assert checks["disk"].remedy.startswith("free ")
    assert checks["checkpoint"].status == SKIPPED


def test_a_batch_that_does_not_split(small, tmp_path):
    small.batch_size = 6
    checks = _examine(small, tmp_path / "run")
    assert _failed(checks) == ["config"]
    assert checks["config"].result == "config.batch_size=6 cannot be split over 4 devices"
    assert checks["config"].remedy == "use 4 or 8"
    assert checks["data"].status == SKIPPED
    lines = doctor.lines(list(checks.values()))
    assert "-> use 4 or 8" in "\n".join(lines)
    assert lines[-1] == "would fail: config"


def test_rates_that_differ(small, tmp_path):
    small.losses.mel.sample_rate = 48000
    checks = _examine(small, tmp_path / "run")
    assert _failed(checks) == ["config"]
    assert checks["config"].result == "config.losses.mel.sample_rate=48000, but config.data.sample_rate=44100"


def test_a_workdir_that_cannot_be_written_to(small, tmp_path):
    checks = _examine(small, Path("/proc/nope"), free=lambda path: 10**12)
    assert _failed(checks) == ["checkpoint"]
    assert checks["checkpoint"].result.startswith("/proc cannot be written to (")
    (tmp_path / "run").write_text("a file")
    assert _failed(_examine(small, tmp_path / "run")) == ["disk"]


def test_a_workdir_of_another_config(small, tmp_path):
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    other = json.loads(configuration.to_json(small))
    other["kl"]["weight"] = 0.5
    (tmp_path / "config.json").write_text(json.dumps(other))
    checks = _examine(small, tmp_path)
    assert _failed(checks) == ["workdir"]
    assert "kl.weight: 0.5 -> 0.0001" in checks["workdir"].result + checks["workdir"].remedy


def test_the_start_of_a_run(small, tmp_path):
    model = AudioVAE(base_channels=4, channel_mults=(1,), strides=(8,), latent_dim=4, dilations=(1,))
    save_model(model, random_variables(model), tmp_path / "m")
    small.init_from = str(tmp_path / "m")
    looker = doctor._Looker(small, tmp_path / "run", None)
    assert looker.claim() == f"{tmp_path / 'run'} is new; the run starts from {tmp_path / 'm'}"
    small.model.latent_dim = 5
    with pytest.raises(CheckpointError, match="(?s)m: its model differs from config.model.*latent_dim: 4 there, 5 h"):
        looker.claim()


@pytest.mark.slow
def test_a_step_that_does_not_fit(small, tmp_path, monkeypatch):
    real = StepCompiler.__init__

    def on_a_small_device(self, *args):
        real(self, *args)
        self.devices = doctor.dataclasses.replace(self.devices, usable_bytes=100_000)

    monkeypatch.setattr(StepCompiler, "__init__", on_a_small_device)
    checks = {check.name: check for check in doctor.examine(small, tmp_path / "run")}
    assert _failed(checks) == ["memory"]
    assert "of 100 kB (planned: " in checks["memory"].result
    assert checks["memory"].remedy.startswith("a smaller config.batch_size")


PROCESS = """
import pickle, sys
from pathlib import Path
import jax, ml_collections
index, address, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(
    address, 2, index, cluster_detection_method="deactivate", coordinator_bind_address=address,
    initialization_timeout=120, heartbeat_timeout_seconds=60, shutdown_timeout_seconds=60,
)
from audiovae_jax.performance.planning import doctor
config = ml_collections.ConfigDict(pickle.loads((folder / f"config{index}").read_bytes()))
checks = doctor.examine(config, folder / "run", compile_step=False)
(folder / f"checks{index}").write_bytes(pickle.dumps([(check.name, check.status, check.result) for check in checks]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("differ", [False, True])
def test_two_processes(small, tmp_path, differ):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = []
    for index in range(2):
        small.kl.weight = 0.5 if differ and index else 1e-4
        (tmp_path / f"config{index}").write_bytes(pickle.dumps(small.to_dict()))
        command = [sys.executable, "-c", PROCESS, str(index), address, str(tmp_path)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    said = [process.communicate(timeout=300)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    for index in range(2):
        checks = {name: rest for name, *rest in pickle.loads((tmp_path / f"checks{index}").read_bytes())}
        assert "4 x cpu (cpu), 2 process(es)" in checks["devices"][1]
        if differ:
            assert checks["processes"] == [FAILED, "different from process 0: config of process 1"]
            assert checks["checkpoint"][0] == SKIPPED
        else:
            assert checks["processes"] == [OK, "2 agree on config, data and versions"]
            assert checks["checkpoint"][0] == OK
            assert checks["checkpoint"][1].endswith("checksums equal")
    assert not list(tmp_path.glob(".doctor*"))
