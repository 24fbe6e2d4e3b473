"""Calls in background threads, which a run need not wait for."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from audiovae_jax.distributed.background import Background

ROOT = Path(__file__).resolve().parents[2]


def test_a_call_gives_what_it_returns_or_raises():
    assert Background(lambda: 3).result() == 3

    def fail():
        raise KeyError("step")

    with pytest.raises(KeyError, match="step"):
        Background(fail).result()


def test_the_stack_size_of_other_threads_stays():
    before = threading.stack_size()
    Background(lambda: None).result()
    assert threading.stack_size() == before


def test_the_stack_size_stays_if_calls_start_at_the_same_time():
    before = threading.stack_size()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: Background(lambda: None).result(), range(64)))
    assert threading.stack_size() == before


@pytest.mark.slow
def test_a_command_does_not_wait_for_a_thread_that_hangs():
    code = (
        "import concurrent.futures, ctypes\n"
        "from audiovae_jax.distributed.background import leave\n"
        "concurrent.futures.ThreadPoolExecutor(1).submit(ctypes.CDLL(None).sleep, 60)\n"
        "leave(3)\n"
    )
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 3
    assert time.monotonic() - began < 50


@pytest.mark.parametrize(("seconds", "said"), [(60, "so it is\n"), (0, "")])
def test_a_command_does_not_wait_for_a_call(seconds, said):
    code = (
        "import ctypes, sys\n"
        "from audiovae_jax.distributed.background import Background, leave\n"
        f"call = Background(lambda: ctypes.CDLL(None).sleep({seconds}))\n"
        f"call.join({0.2 if seconds else None})\n"
        "print('done')\n"
        "leave(3, lambda: print('so it is', file=sys.stderr))\n"
        "sys.exit(4)\n"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3 if seconds else 4, "done\n", said)
    assert time.monotonic() - began < 50
