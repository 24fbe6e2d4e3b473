"""Joining the processes of a distributed run.

SLURM, Open MPI, GKE and TPU VMs are detected. Elsewhere flags are needed.
"""

import contextlib
import glob
import importlib.util
import os
import socket
import threading
import traceback
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

    Without the first three arguments, the cluster is detected: SLURM, Open MPI, GKE or a TPU VM. A single task, a batch
    script outside of `srun` and a plain shell run alone, and nothing is joined. `num_processes=1` without the other two
    disables the detection.

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
        except (RuntimeError, ValueError, OSError) as error:
            raise ConfigError(_failure(arguments, error)) from error
    if arguments.get("cluster_detection_method") in _ONE_DEVICE_A_TASK and _sees_its_own_devices(os.environ):
        for key in ("jax_cuda_visible_devices", "jax_rocm_visible_devices"):
            jax.config.update(key, "all")
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
        return _detected(os.environ)
    missing = [flag for flag, value in given.items() if value is None]
    if missing:
        raise ConfigError(
            f"{' and '.join(given.keys() - set(missing))} given without {' and '.join(missing)}: give all three on "
            "every host, or none if the cluster is detected (SLURM, Open MPI, GKE, TPU VMs); "
            "--num_processes=1 without the others trains in this process only"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--coordinator_address={address} must be HOST:PORT of the first process")
    if count < 1 or not 0 <= index < count:
        raise ConfigError(f"--process_id={index} must be from 0 to {count - 1} with --num_processes={count}")
    return _by_name(address, count, index)


def _by_name(address, count, index):
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }


# Under these launchers jax gives each task one device, by the task's number on the host.
_ONE_DEVICE_A_TASK = ("slurm", "ompi")


def _detected(environment: Mapping[str, str]):
    """Like `_arguments`, from the cluster's environment variables.

    jax detects the rest, but not that a process runs alone.
    """
    if "SLURM_JOB_ID" in environment:
        # A batch script also sees its job's number of tasks, but is not one of them.
        is_task = "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment
        tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))
        return {"cluster_detection_method": "slurm"} if is_task and int(tasks) > 1 else None
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        if "OMPI_MCA_orte_hnp_uri" in environment:
            return {"cluster_detection_method": "ompi"}
        address = environment.get("JAX_COORDINATOR_ADDRESS")
        if address is None:
            raise ConfigError(
                "Open MPI 5 does not publish the address of its first process; give it with "
                "mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT ..., the first host's name and a free port"
            )
        return _by_name(address, int(environment["OMPI_COMM_WORLD_SIZE"]), int(environment["OMPI_COMM_WORLD_RANK"]))
    if _has_tpu(environment):
        hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
        if hosts is not None:
            is_alone = "," not in hosts and int(environment.get("MEGASCALE_NUM_SLICES") or 1) == 1
            return None if is_alone else {"cluster_detection_method": "gketpu"}
        return None if "TPU_SKIP_MDS_QUERY" in environment else {"cluster_detection_method": "gcetpu"}
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        if importlib.util.find_spec("kubernetes") is not None:
            return {"cluster_detection_method": "k8s"}
        warnings.warn(
            "this is a pod of an indexed Job. To train across its pods give --coordinator_address, --num_processes "
            "and --process_id, or install jax[k8s]. To train in this pod only, give --num_processes=1",
            UserWarning,
            stacklevel=2,
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
    tasks = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") or environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    tasks = max((int(part.partition("(")[0]) for part in tasks.split(",") if part), default=None)  # "4(x2),3"
    if tasks is None:
        return False
    visible = environment.get("CUDA_VISIBLE_DEVICES") or environment.get("ROCR_VISIBLE_DEVICES")
    return tasks == 1 or (visible is not None and len(visible.split(",")) < tasks)


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
    if address is None:
        method = arguments["cluster_detection_method"]
        return f"not all processes of this run (detected by {method}) joined within {seconds:.0f} s; {remedy}"
    if arguments["process_id"] != 0 and not _answers(address):
        return (
            f"no answer at --coordinator_address={address} for {seconds:.0f} s: process 0 is not running, the address "
            f"is wrong, or a firewall blocks it; {remedy}"
        )
    return f"not all {count} processes joined process 0 at {address} within {seconds:.0f} s; {remedy}"


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
    how = "" if method == "deactivate" else f" (detected by {method})"
    return f"the processes of this run{how} could not join: {reason}"
