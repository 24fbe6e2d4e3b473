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


HOSTS_OF_TPU = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}
PMI = {"PMI_SIZE": "2", "PMI_RANK": "1"}
JAX = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
URI = {"OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.1:1"}
BATCH_SCRIPT = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}
ONE_TASK = {**SLURM, "SLURM_STEP_NUM_TASKS": "1"}
FLAGS = "give --coordinator_address=HOST:PORT, --num_processes and --process_id to every process"


def _method(name):
    return {"cluster_detection_method": name}


def _by_name(address, count, index, **local):
    named = {"coordinator_address": address, "num_processes": count, "process_id": index}
    return {**named, "cluster_detection_method": "deactivate", **local}


@pytest.fixture
def machine(monkeypatch):
    """Sets the installed packages among those of the detection. A machine with libtpu has TPUs."""

    def set_up(packages):
        monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: name if name in packages else None)
        monkeypatch.setattr(launch.glob, "glob", lambda pattern: ["/dev/accel0"] if "libtpu" in packages else [])

    return set_up


@pytest.mark.parametrize(
    ("environment", "packages", "found"),
    [
        ({}, "", None),
        (SLURM, "", _method("slurm")),
        ({**SLURM, "PMI_SIZE": "2", "PMI_RANK": "1"}, "", _method("slurm")),  # srun --mpi=pmi2
        (ONE_TASK, "", None),
        (BATCH_SCRIPT, "", None),
        ({**OMPI, **URI}, "", _method("ompi")),
        ({**OMPI, **URI, **SLURM}, "", _method("ompi")),  # mpirun starts its daemons with srun
        ({**OMPI, **URI, **ONE_TASK}, "", _method("ompi")),
        ({**OMPI, **URI, **BATCH_SCRIPT}, "", _method("ompi")),
        ({**OMPI, "OMPI_COMM_WORLD_SIZE": "1", **SLURM}, "", None),
        (OMPI, "mpi4py", _method("mpi4py")),
        ({**OMPI, **BATCH_SCRIPT}, "mpi4py", _method("mpi4py")),
        ({**OMPI, "JAX_COORDINATOR_ADDRESS": "a:1", **ONE_TASK}, "mpi4py", _by_name("a:1", 2, 1)),
        (OMPI, "", r"Open MPI 5 does not publish .* mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT .* or install mpi4py"),
        (PMI, "mpi4py", _method("mpi4py")),
        ({**PMI, **ONE_TASK}, "mpi4py", _method("mpi4py")),  # mpiexec of MPICH in a SLURM allocation
        ({**PMI, "JAX_COORDINATOR_ADDRESS": "a:1"}, "", _by_name("a:1", 2, 1)),
        (
            {**PMI, "JAX_COORDINATOR_ADDRESS": "a:1", "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "1"},
            "",
            _by_name("a:1", 2, 1, local_device_ids=1),
        ),
        (
            PMI,
            "",
            r"PMI \(MPICH, Intel MPI, Cray\) does not publish .* mpiexec -genv JAX_COORDINATOR_ADDRESS HOST:PORT",
        ),
        ({**PMI, "PMI_SIZE": "1"}, "", None),
        ({"PMI_RANK": "1"}, "", f"PMI_RANK is set without PMI_SIZE, .*; {FLAGS}"),
        (HOSTS_OF_TPU, "libtpu", _method("gketpu")),
        ({**HOSTS_OF_TPU, "TPU_WORKER_HOSTNAMES": "a"}, "libtpu", None),
        (HOSTS_OF_TPU, "", None),
        ({}, "libtpu", _method("gcetpu")),
        (POD, "kubernetes", _method("k8s")),
        (JAX, "", _by_name("a:1", 2, 1)),
        ({**JAX, **SLURM}, "", _by_name("a:1", 2, 1)),
        ({"JAX_NUM_PROCESSES": "1", **SLURM}, "", None),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", **SLURM}, "", _method("slurm")),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", **BATCH_SCRIPT}, "", None),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "", f"JAX_COORDINATOR_ADDRESS set without JAX_NUM_PROCESSES .*{FLAGS}"),
        ({**JAX, "JAX_PROCESS_ID": ""}, "", f"JAX_NUM_PROCESSES set without JAX_PROCESS_ID: .*{FLAGS}"),
        ({"JAX_NUM_PROCESSES": "2", **BATCH_SCRIPT}, "", "JAX_NUM_PROCESSES set without JAX_COORDINATOR_ADDRESS"),
        ({**JAX, "JAX_COORDINATOR_ADDRESS": "a"}, "", "JAX_COORDINATOR_ADDRESS=a must be HOST:PORT"),
        ({**JAX, "JAX_PROCESS_ID": "one"}, "", "JAX_PROCESS_ID=one must be whole numbers"),
        ({**JAX, "JAX_PROCESS_ID": "2"}, "", "JAX_PROCESS_ID=2 must be from 0 to 1 with JAX_NUM_PROCESSES=2"),
    ],
)
def test_what_an_environment_is_detected_as(machine, environment, packages, found):
    machine(packages.split())
    if isinstance(found, str):
        with pytest.raises(ConfigError, match=found):
            launch.detected(environment)
    else:
        assert launch.detected(environment) == found


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        # jax raises an IndexError for an address without a port.
        ({**SLURM, "JAX_COORDINATOR_ADDRESS": "a"}, "(detected by slurm) could not join: IndexError: "),
        ({**SLURM, "SLURM_LOCALID": "first"}, "(detected by slurm) could not join: ValueError: "),
    ],
)
def test_an_error_of_the_detection_names_the_flags(environment, message):
    ended = _join(None, None, None, **environment)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"ConfigError: the processes of this run {message}" in ended.stderr
    assert ended.stderr.endswith(f"; {FLAGS}\n")


def test_mpi4py_of_another_mpi_is_refused(monkeypatch, machine):
    for key, value in PMI.items():
        monkeypatch.setenv(key, value)
    machine(["mpi4py"])
    monkeypatch.setattr(launch.jax.distributed, "initialize", lambda **arguments: None)  # of one process, as it sees
    with pytest.raises(ConfigError, match="pip install --no-binary=mpi4py mpi4py"), launch.joined(end=pytest.fail):
        pass


def test_a_plain_process_joins_nothing():
    assert launch.detected({}) is None


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
    assert launch.detected(environment) is None


def test_tasks_of_slurm_join():
    assert launch.detected(SLURM) == {"cluster_detection_method": "slurm"}


def test_ranks_of_open_mpi_join():
    assert launch.detected({**OMPI, "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.1:1"}) == {
        "cluster_detection_method": "ompi"
    }
    assert launch.detected({**OMPI, "OMPI_COMM_WORLD_SIZE": "1"}) is None
    with pytest.raises(ConfigError, match="mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT"):
        launch.detected(OMPI)
    joined = launch.detected({**OMPI, "JAX_COORDINATOR_ADDRESS": "a:1"})
    assert joined == _by_name("a:1", 2, 1)


def test_tpu_hosts_join(monkeypatch):
    monkeypatch.setattr(launch, "_has_tpu", lambda environment: True)
    assert launch.detected({"TPU_WORKER_HOSTNAMES": "a,b"}) == {"cluster_detection_method": "gketpu"}
    assert launch.detected({"TPU_WORKER_HOSTNAMES": "a"}) is None
    assert launch.detected({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}) is not None
    assert launch.detected({}) == {"cluster_detection_method": "gcetpu"}
    assert launch.detected({"TPU_SKIP_MDS_QUERY": "1"}) is None


def test_a_pod_of_an_indexed_job_gets_a_warning(monkeypatch):
    environment = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"install jax\[k8s\]"):
        assert launch.detected(environment) is None
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: name == "kubernetes")
    assert launch.detected(environment) == {"cluster_detection_method": "k8s"}
    assert launch.detected({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None  # a notebook's pod


@pytest.mark.parametrize(
    ("environment", "own"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, True),  # one process per host uses all devices
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, False),  # one process per device
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "CUDA_VISIBLE_DEVICES": "5"}, True),  # --gpus-per-task=1
        ({"SLURM_STEP_TASKS_PER_NODE": "2,1", "CUDA_VISIBLE_DEVICES": "0,1"}, False),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, True),
        ({"MPI_LOCALNRANKS": "1", "SLURM_STEP_TASKS_PER_NODE": "8"}, True),
        ({"PMI_LOCAL_SIZE": "4"}, False),
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


def _join(address, count, index, **environment):
    code = (
        "from audiovae_jax.commands import process\n"
        "from audiovae_jax.distributed import launch\n"
        f"with launch.joined({address!r}, {count}, {index}, initialization_timeout=2, end=process.end): pass"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_who_does_not_come_is_missed_with_a_clear_line():
    address = f"127.0.0.1:{free_port()}"
    ended = _join(address, 2, 1)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert f"error: no answer at --coordinator_address={address} for 2 s" in ended.stderr
    ended = _join(address, 2, 0)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert f"error: not all 2 processes joined process 0 at {address} within 2 s; start them all" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("excluded", ["", "127.0.0.1"])
def test_a_proxy_is_named_if_nothing_answers(excluded):
    proxies = {"http_proxy": "http://127.0.0.1:1", "https_proxy": "", "grpc_proxy": "", "no_proxy": excluded}
    ended = _join(f"127.0.0.1:{free_port()}", 2, 1, **proxies, NO_PROXY="")
    assert ended.returncode == 1
    named = ". http_proxy may intercept the connection: unset it, or add 127.0.0.1 to no_proxy\n"
    assert ended.stderr.endswith(named) == (not excluded)
    assert "no answer at --coordinator_address=127.0.0.1:" in ended.stderr


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
