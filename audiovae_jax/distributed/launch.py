"""Joining the processes of a distributed run.

SLURM, MPI, GKE, TPU VMs and the variables of JAX are detected. Elsewhere flags are needed.
"""

import contextlib
import glob
import importlib.util
import os
import socket
import threading
import traceback
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

import jax

from audiovae_jax.errors import ConfigError, UserError

HEARTBEAT_TIMEOUT = 60.0  # seconds
# jax aborts a process whose peers are gone, with a long C++ message. Its time limits are longer, so that ours come
# first.
_JAX_IS_LATER = 30  # seconds
_SHUTDOWN_TIMEOUT = 60  # seconds


@contextlib.contextmanager
def joined(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    initialization_timeout: float = 300.0,
    heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
    end: Callable[[str], NoReturn],
) -> Iterator[None]:
    """Join the processes of a distributed run, before jax is used otherwise.

    Without the first three arguments, the cluster is detected: see `detected`. A single task, a batch script outside of
    `srun` and a plain shell run alone, and nothing is joined. `num_processes=1` without the other two disables the
    detection.

    If there are several processes, an error in the context ends this process at once. jax would wait for the others,
    which may be gone.

    Args:
      coordinator_address: `host:port` where process 0 listens.
      num_processes: number of processes.
      process_id: index of this process, from 0.
      initialization_timeout: seconds until all processes must have joined.
      heartbeat_timeout: seconds without a heartbeat after which a process counts as dead.
      end: reports a message and ends this process at once. A thread calls it if the others do not join in time.

    Raises:
      ConfigError: the flags are inconsistent, or the processes cannot join, for example because process 0 cannot
        listen at its address.
    """
    arguments = _arguments(coordinator_address, num_processes, process_id)
    if arguments is None or jax.distributed.is_initialized():
        yield
        return
    # Disable jax's handling of SIGTERM. Ours also handles other signals and time limits.
    jax.config.update("jax_enable_preemption_service", False)
    with _time_limit(initialization_timeout, arguments, end):
        try:
            jax.distributed.initialize(
                **arguments,
                # Longer than our own limit, since jax aborts the process.
                initialization_timeout=int(initialization_timeout) + _JAX_IS_LATER,
                heartbeat_timeout_seconds=int(heartbeat_timeout) + _JAX_IS_LATER,
                shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
            )
        except Exception as error:  # jax's detection raises errors of any type
            raise ConfigError(_failure(arguments, error)) from error
    method = arguments["cluster_detection_method"]
    if method in _ONE_DEVICE_A_TASK and _sees_its_own_devices(os.environ):
        for key in ("jax_cuda_visible_devices", "jax_rocm_visible_devices"):
            jax.config.update(key, "all")
    if method == "mpi4py" and jax.process_count() == 1:
        raise ConfigError(
            "mpi4py sees one process, but several were started: it was built for another MPI. Build it for this one "
            f"with pip install --no-binary=mpi4py mpi4py, or {_GIVE_FLAGS}"
        )
    try:
        yield
    except UserError as error:
        end(f"error: {error}")
    except KeyboardInterrupt:
        end("interrupted")
    except Exception:
        end(traceback.format_exc())


def _arguments(address, count, index):
    """Return the arguments of `jax.distributed.initialize`, None if alone."""
    given = {"--coordinator_address": address, "--num_processes": count, "--process_id": index}
    if given == {"--coordinator_address": None, "--num_processes": 1, "--process_id": None}:
        return None
    if all(value is None for value in given.values()):
        return detected(os.environ)
    missing = [flag for flag, value in given.items() if value is None]
    if missing:
        raise ConfigError(
            f"{' and '.join(given.keys() - set(missing))} given without {' and '.join(missing)}: give all three on "
            "every host, or none if the cluster is detected (SLURM, MPI, GKE, TPU VMs); "
            "--num_processes=1 without the others trains in this process only"
        )
    return _by_name(given)


def _by_name(given):
    """Return the arguments for an address, a count and an index.

    `given` has their values by the names of their settings, which errors name.
    """
    (of_address, address), (of_count, count), (of_index, index) = given.items()
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"{of_address}={address} must be HOST:PORT of the first process")
    try:
        count, index = int(count), int(index)
    except ValueError:
        raise ConfigError(f"{of_count}={count} and {of_index}={index} must be whole numbers") from None
    if count < 1 or not 0 <= index < count:
        raise ConfigError(f"{of_index}={index} must be from 0 to {count - 1} with {of_count}={count}")
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }


# Under these launchers jax gives each task one device, by the task's number on the host.
_ONE_DEVICE_A_TASK = ("slurm", "ompi", "mpi4py")
_GIVE_FLAGS = "give --coordinator_address=HOST:PORT, --num_processes and --process_id to every process"
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_MPI = {  # by the prefix of their variables: their name, and how they set a variable
    "OMPI_COMM_WORLD": ("Open MPI 5", "mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT"),
    "PMI": ("PMI (MPICH, Intel MPI, Cray)", "mpiexec -genv JAX_COORDINATOR_ADDRESS HOST:PORT"),
}


def detected(environment: Mapping[str, str]) -> dict[str, str | int] | None:
    """Return the `jax.distributed.initialize` arguments of a detected cluster.

    The environment variables show the cluster. jax detects the rest, but not that a process runs alone. The order is
    important: MPI comes before SLURM, as in jax, because `mpirun` inside an allocation starts more processes than SLURM
    knows.

    Returns:
      The arguments, or None if this process runs alone.

    Raises:
      ConfigError: the variables show several processes, but are not sufficient to join them.
    """
    # 1. The variables of JAX, if they are complete.
    given = {name: environment[name] for name in _VARIABLES if environment.get(name)}
    if given == {"JAX_NUM_PROCESSES": "1"}:
        return None
    if len(given) == len(_VARIABLES):
        return _by_name(given)
    # 2. The launcher. jax uses JAX_COORDINATOR_ADDRESS under each of them.
    for prefix in _MPI:
        if _is_mpi(environment, prefix):
            return _of_mpi(environment, prefix)
    if "SLURM_JOB_ID" in environment:
        found = _of_slurm(environment)
    else:
        found = _of_tpu(environment) if _has_tpu(environment) else _of_kubernetes(environment)
    # 3. Incomplete variables of JAX. An address alone may be meant for other steps of a job.
    if found is None and given and not ("SLURM_JOB_ID" in environment and given.keys() == {_VARIABLES[0]}):
        missing = [name for name in _VARIABLES if name not in given]
        raise ConfigError(
            f"{' and '.join(given)} set without {' and '.join(missing)}: set all three in every process, or "
            f"{_GIVE_FLAGS}; --num_processes=1 trains in this process only"
        )
    return found


def _is_mpi(environment, prefix):
    size, rank = f"{prefix}_SIZE", f"{prefix}_RANK"
    if size in environment:
        # srun sets the variables of PMI too. Under the mpiexec of MPICH, which uses srun, they differ from SLURM's.
        return prefix != "PMI" or environment[size] != environment.get("SLURM_STEP_NUM_TASKS")
    if rank in environment and "SLURM_JOB_ID" not in environment:
        raise ConfigError(
            f"{rank} is set without {size}, so the number of processes is unknown; {_GIVE_FLAGS}; "
            "--num_processes=1 trains in this process only"
        )
    return False


def _of_mpi(environment, prefix):
    size, rank = f"{prefix}_SIZE", f"{prefix}_RANK"
    if environment[size] == "1":
        return None
    if prefix == "OMPI_COMM_WORLD" and "OMPI_MCA_orte_hnp_uri" in environment:
        return {"cluster_detection_method": "ompi"}
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    if address is not None:
        found = _by_name({"JAX_COORDINATOR_ADDRESS": address, size: environment[size], rank: environment.get(rank, "")})
        local = environment.get(f"{prefix}_LOCAL_RANK") or environment.get("MPI_LOCALRANKID")
        if local is None or _tasks_on_host(environment) is None or "JAX_LOCAL_DEVICE_IDS" in environment:
            return found
        return found if _sees_its_own_devices(environment) else {**found, "local_device_ids": int(local)}
    if importlib.util.find_spec("mpi4py") is not None:
        return {"cluster_detection_method": "mpi4py"}
    name, option = _MPI[prefix]
    raise ConfigError(
        f"{name} does not publish the address of its first process; give it with {option} ..., the first host's name "
        "and a free port, or install mpi4py"
    )


def _of_slurm(environment):
    # A batch script also sees its job's number of tasks, but is not one of them.
    is_task = "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))
    return {"cluster_detection_method": "slurm"} if is_task and int(tasks) > 1 else None


def _of_tpu(environment):
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if hosts is not None:
        is_alone = "," not in hosts and int(environment.get("MEGASCALE_NUM_SLICES") or 1) == 1
        return None if is_alone else {"cluster_detection_method": "gketpu"}
    return None if "TPU_SKIP_MDS_QUERY" in environment else {"cluster_detection_method": "gcetpu"}


def _of_kubernetes(environment):
    if "KUBERNETES_SERVICE_HOST" not in environment or "JOB_COMPLETION_INDEX" not in environment:
        return None
    if importlib.util.find_spec("kubernetes") is not None:
        return {"cluster_detection_method": "k8s"}
    warnings.warn(
        "this is a pod of an indexed Job. To train across its pods give --coordinator_address, --num_processes "
        "and --process_id, or install jax[k8s]. To train in this pod only, give --num_processes=1",
        UserWarning,
        stacklevel=3,
    )
    return None


def _has_tpu(environment):
    platforms = environment.get("JAX_PLATFORMS", "")
    if importlib.util.find_spec("libtpu") is None or (platforms and "tpu" not in platforms):
        return False
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


def _sees_its_own_devices(environment: Mapping[str, str]):
    """Return whether a task should use every device that it sees.

    It should if it is alone on its host, or if only its own devices are visible.
    """
    if "JAX_LOCAL_DEVICE_IDS" in environment:
        return False
    tasks = _tasks_on_host(environment)
    if tasks is None:
        return False
    visible = environment.get("CUDA_VISIBLE_DEVICES") or environment.get("ROCR_VISIBLE_DEVICES")
    return tasks == 1 or (visible is not None and len(visible.split(",")) < tasks)


def _tasks_on_host(environment):
    names = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "PMI_LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE")
    tasks = next((environment[name] for name in names if environment.get(name)), "")
    return max((int(part.partition("(")[0]) for part in tasks.split(",") if part), default=None)  # "4(x2),3"


@contextlib.contextmanager
def _time_limit(seconds, arguments, end):
    """End the process with a clear message after a time limit, before jax aborts it."""
    timer = threading.Timer(seconds, lambda: end(f"error: {_silence(arguments, seconds)}"))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _silence(arguments, seconds):
    remedy = "start them all within that time, or raise --initialization_timeout"
    address, count = arguments.get("coordinator_address"), arguments.get("num_processes")
    remedy += _proxy_remedy(address)
    if address is None:
        method = arguments["cluster_detection_method"]
        return f"not all processes of this run (detected by {method}) joined within {seconds:.0f} s; {remedy}"
    if arguments["process_id"] != 0 and not _answers(address):
        return (
            f"no answer at --coordinator_address={address} for {seconds:.0f} s: process 0 is not running, the address "
            f"is wrong, or a firewall blocks it; {remedy}"
        )
    return f"not all {count} processes joined process 0 at {address} within {seconds:.0f} s; {remedy}"


def _proxy_remedy(address):
    """Return how to keep a proxy out of the connection to process 0, or ""."""
    proxies = [name for name in ("grpc_proxy", "https_proxy", "http_proxy") if os.environ.get(name)]
    host = address.rpartition(":")[0].strip("[]") if address else "the first host"
    if not proxies or (address and urllib.request.proxy_bypass_environment(host)):
        return ""
    return f". {' and '.join(proxies)} may intercept the connection: unset it, or add {host} to no_proxy"


def _answers(address):
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return True
    except OSError:
        return False


def _failure(arguments, error):
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "Failed to start RPC server" in reason:
        address = arguments.get("coordinator_address", "its address")
        return (
            f"process 0 cannot listen at {address}: the port is in use, or the address is another host's; "
            "give a free port of this host"
        )
    method = arguments["cluster_detection_method"]
    if method == "deactivate":
        return f"the processes of this run could not join: {reason}"
    if not isinstance(error, RuntimeError):
        reason = f"{type(error).__name__}: {reason}"  # without its type, an error such as IndexError explains little
    return f"the processes of this run (detected by {method}) could not join: {reason}; {_GIVE_FLAGS}"
