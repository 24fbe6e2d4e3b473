"""Which processes join, and the errors if they cannot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import free_port

from audiovae_jax.distributed import launch
from audiovae_jax.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}  # fmt: skip
OMPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}


def test_a_plain_process_joins_nothing():
    assert launch._detected({}) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_STEP_NUM_TASKS": "1"},  # an interactive step of a larger allocation
        {"SLURM_STEP_NODELIST": None, "SLURM_STEP_NUM_TASKS": None},  # a batch script outside of srun
    ],
)
def test_one_task_of_slurm_joins_nothing(changes):
    environment = {key: value for key, value in (SLURM | changes).items() if value is not None}
    assert launch._detected(environment) is None


def test_tasks_of_slurm_join():
    assert launch._detected(SLURM) == {"cluster_detection_method": "slurm"}


def test_ranks_of_open_mpi_join():
    assert launch._detected({**OMPI, "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.1:1"}) == {
        "cluster_detection_method": "ompi"
    }
    assert launch._detected({**OMPI, "OMPI_COMM_WORLD_SIZE": "1"}) is None
    with pytest.raises(ConfigError, match="mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT"):
        launch._detected(OMPI)
    joined = launch._detected({**OMPI, "JAX_COORDINATOR_ADDRESS": "a:1"})
    assert joined == launch._by_name("a:1", 2, 1)


def test_tpu_hosts_join(monkeypatch):
    monkeypatch.setattr(launch, "_has_tpu", lambda environment: True)
    assert launch._detected({"TPU_WORKER_HOSTNAMES": "a,b"}) == {"cluster_detection_method": "gketpu"}
    assert launch._detected({"TPU_WORKER_HOSTNAMES": "a"}) is None
    assert launch._detected({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}) is not None
    assert launch._detected({}) == {"cluster_detection_method": "gcetpu"}
    assert launch._detected({"TPU_SKIP_MDS_QUERY": "1"}) is None


def test_a_pod_of_an_indexed_job_gets_a_warning(monkeypatch):
    environment = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"install jax\[k8s\]"):
        assert launch._detected(environment) is None
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: name == "kubernetes")
    assert launch._detected(environment) == {"cluster_detection_method": "k8s"}
    assert launch._detected({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None  # a notebook's pod


@pytest.mark.parametrize(
    ("environment", "own"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, True),  # one process per host uses all devices
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, False),  # one process per device
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "CUDA_VISIBLE_DEVICES": "5"}, True),  # --gpus-per-task=1
        ({"SLURM_STEP_TASKS_PER_NODE": "2,1", "CUDA_VISIBLE_DEVICES": "0,1"}, False),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, True),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "JAX_LOCAL_DEVICE_IDS": "0"}, False),
        ({}, False),
    ],
)
def test_tasks_that_use_all_visible_devices(environment, own):
    assert launch._sees_its_own_devices(environment) == own


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a:1", None, None), "--coordinator_address given without --num_processes and --process_id: give all three"),
        ((None, 2, None), "--num_processes given without --coordinator_address and --process_id"),
        (("a", 2, 0), "--coordinator_address=a must be HOST:PORT"),
        (("a:1", 2, 2), "--process_id=2 must be from 0 to 1 with --num_processes=2"),
    ],
)
def test_flags_that_do_not_go_together(arguments, message):
    with pytest.raises(ConfigError, match=message):
        launch._arguments(*arguments)


def test_one_process_joins_nothing_under_any_launcher(monkeypatch):
    for key, value in SLURM.items():
        monkeypatch.setenv(key, value)
    assert launch._arguments(None, 1, None) is None
    assert launch._arguments(None, None, None) is not None


def _join(address, count, index):
    code = (
        "from audiovae_jax.commands import process\n"
        "from audiovae_jax.distributed import launch\n"
        f"with launch.joined({address!r}, {count}, {index}, initialization_timeout=2, end=process.end): pass"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False
    )


def test_who_does_not_come_is_missed_with_a_clear_line():
    address = f"127.0.0.1:{free_port()}"
    ended = _join(address, 2, 1)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert f"error: no answer at --coordinator_address={address} for 2 s" in ended.stderr
    ended = _join(address, 2, 0)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert f"error: not all 2 processes joined process 0 at {address} within 2 s; start them all" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["slurm", "ompi"])
def test_a_launchers_variables_are_sufficient(cluster):
    """Two processes with a launcher's variables join without flags."""
    code = (
        "from audiovae_jax.commands import process\n"
        "from audiovae_jax.distributed import launch\n"
        "import jax\n"
        "with launch.joined(end=process.end): print(jax.process_index(), jax.process_count(), jax.device_count())"
    )
    job = str(free_port())  # jax derives the port from it
    processes = []
    for i in range(2):
        if cluster == "slurm":
            variables = {
                **SLURM, "SLURM_JOB_ID": job, "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_PROCID": str(i),
                "SLURM_LOCALID": str(i), "SLURM_STEP_TASKS_PER_NODE": "2",
            }  # fmt: skip
        else:
            variables = {
                **OMPI, "OMPI_MCA_orte_hnp_uri": f"{int(job) * 4096}.0;tcp://127.0.0.1:1",
                "OMPI_COMM_WORLD_RANK": str(i), "OMPI_COMM_WORLD_LOCAL_RANK": str(i),
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            }  # fmt: skip
        environment = {**os.environ, **variables, "JAX_NUM_CPU_DEVICES": "2"}
        command = [sys.executable, "-c", code]
        processes.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        )
    said = [process.communicate(timeout=300) for process in processes]
    for i, (out, err) in enumerate(said):
        assert f"{i} 2 4" in out.decode(), err.decode()
