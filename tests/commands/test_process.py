import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from audiovae_jax.commands import process

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_process_restarts_once_with_its_arguments(tmp_path):
    if not process._can_ask():
        pytest.skip("this system has no large pages to ask for")
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        f"sys.path.append({str(ROOT)!r})\n"
        "from audiovae_jax.commands import process\n"
        "print('started', flush=True)\n"
        "process.restart_with_huge_pages()\n"
        "print(os.environ['GLIBC_TUNABLES'], sys.argv[1:], sys.flags.utf8_mode)\n"
    )
    env = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.perturb=0"}
    done = subprocess.run(
        [sys.executable, "-X", "utf8", str(program), "--a=b c", "d"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "started",
        "started",
        "glibc.malloc.perturb=0:glibc.malloc.hugetlb=1 ['--a=b c', 'd'] 1",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "typed"), [(["-c", "{}"], ""), (["-"], "{}"), ([], "{}"), (["-i", "-c", "{}"], "")]
)
def test_a_process_that_its_command_line_does_not_reproduce_is_not_restarted(arguments, typed):
    code = (
        "import os; from audiovae_jax.commands import process; print('started', flush=True); "
        "process.restart_with_huge_pages()"
    )
    done = subprocess.run(
        [sys.executable, *(argument.format(code) for argument in arguments)],
        input=typed.format(code),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["started"]


def test_a_child_of_multiprocessing_is_not_restarted(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", __file__, raising=False)
    assert process._runs_a_script()
    monkeypatch.setattr(multiprocessing, "parent_process", multiprocessing.current_process)
    assert not process._runs_a_script()


def test_it_respects_the_users_settings_and_the_systems_limits(monkeypatch):
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("it restarted the process"))
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    process.restart_with_huge_pages()
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setattr(process, "_can_ask", lambda: False)
    process.restart_with_huge_pages()
    assert "GLIBC_TUNABLES" not in os.environ


_FULL_DISK = """
import gc, logging, resource, signal, sys
from pathlib import Path
import numpy as np
from audiovae_jax.commands import process
from audiovae_jax.storage import array_store
process.drop_orbax_log_lines()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
rng = np.random.default_rng(0)
try:
    array_store.write_tree(Path(sys.argv[1]), {str(i): rng.standard_normal(50_000) for i in range(20)})
except OSError as error:
    print(error)
gc.collect()
for name in ("absl", "asyncio"):
    logging.getLogger(name).error("Task exception was never retrieved, of another library")
"""


@pytest.mark.slow
def test_a_failed_write_logs_nothing_and_other_libraries_are_heard(tmp_path):
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(tmp_path / "tree")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "File too large\n"
    assert done.stderr.count("Task exception was never retrieved, of another library") == 2
    assert len(done.stderr.splitlines()) == 2, done.stderr


_BLOCKED = """
import ctypes
from audiovae_jax.commands import process
process.show_stacks_on_signal()
print("ready", flush=True)
def blocked():
    while not ctypes.CDLL(None).sleep(30):
        pass
blocked()
print("done")
"""


def test_a_signal_shows_the_stacks_of_a_blocked_process():
    blocked = subprocess.Popen(
        [sys.executable, "-c", _BLOCKED], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert blocked.stdout.readline() == "ready\n"
    time.sleep(0.5)
    blocked.send_signal(signal.SIGUSR1)
    out, err = blocked.communicate(timeout=20)  # the signal also interrupts the call of sleep
    assert (blocked.returncode, out) == (0, "done\n")
    assert "most recent call first" in err
    assert "in blocked" in err


_FLAG = "xla_gpu_nccl_termination_timeout_seconds"


@pytest.mark.parametrize(
    ("flags", "plugin", "seconds", "expected"),
    [
        ("--a=1", _FLAG, 60.0, f"--a=1 --{_FLAG}=60"),
        ("", _FLAG, 60.0, f"--{_FLAG}=60"),
        ("", _FLAG, 0.0, ""),  # no limit
        (f"--{_FLAG}=5", _FLAG, 60.0, f"--{_FLAG}=5"),  # the user's
        ("", "of another version", 60.0, ""),  # it would abort
        ("", None, 60.0, ""),  # no GPUs
    ],
)
def test_operations_of_nccl_are_limited(monkeypatch, tmp_path, flags, plugin, seconds, expected):
    if plugin is not None:
        library = tmp_path / "jax_plugins" / "xla_cuda12" / "xla_cuda_plugin.so"
        library.parent.mkdir(parents=True)
        library.write_bytes(b"\0" + plugin.encode() + b"\0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XLA_FLAGS", flags)
    process.limit_nccl(seconds)
    assert os.environ["XLA_FLAGS"] == expected


@pytest.mark.slow
def test_jaxlib_reads_the_limit_of_nccl_when_it_starts_its_devices():
    code = f"import os, jax; os.environ['XLA_FLAGS'] = '--{_FLAG}=60'; jax.devices()"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    late = code.replace(_FLAG, "xla_no_such_flag")
    done = subprocess.run([sys.executable, "-c", late], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "xla_no_such_flag" in done.stderr
