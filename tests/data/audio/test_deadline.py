import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import soundfile

from audiovae_jax.data.audio import deadline
from audiovae_jax.data.feeding import pipeline
from configs import base

if not hasattr(os, "mkfifo"):
    pytest.skip("needs named pipes, which hang as a dead mount does", allow_module_level=True)


@pytest.fixture
def hanging(tmp_path):
    """Makes files whose opening never returns, and lets go of whoever hangs there at the end."""
    pipes = []

    def make(path):
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        pipes.append(path)
        return path

    yield make
    for pipe in pipes:
        # Opened for both it does not hang; whoever waits for a writer goes on.
        os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))


def test_what_returns_or_raises_does_so_in_a_thread_that_stays():
    threads = [deadline.within(10.0, threading.get_ident) for _ in range(3)]
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        deadline.within(10.0, lambda: 1 / 0)
    assert deadline.within(0, threading.get_ident) == threading.get_ident()


def test_a_read_that_hangs_is_given_up(tmp_path, hanging):
    pipe = hanging(tmp_path / "pipe")
    began = time.monotonic()
    with pytest.raises(deadline.TimedOutError, match=r"did not return within data.read_timeout=0.2 s"):
        deadline.within(0.2, open, pipe, "rb")
    assert 0.2 <= time.monotonic() - began < 5.0
    assert deadline.within(10.0, lambda: "another") == "another"


def test_each_read_of_a_call_has_the_whole_time():
    def reads():
        for _ in range(4):
            deadline.begin("a.wav")
            time.sleep(0.2)
        return "done"

    assert deadline.within(0.6, reads) == "done"


def test_the_read_that_hangs_is_named(tmp_path, hanging):
    pipe = hanging(tmp_path / "pipe")

    def reads():
        deadline.begin("a.wav")
        deadline.begin("b.wav")
        return pipe.read_bytes()

    with pytest.raises(deadline.TimedOutError) as raised:
        deadline.within(0.2, reads)
    assert raised.value.what == "b.wav"
    with pytest.raises(deadline.TimedOutError) as raised:
        deadline.within(0.2, open, pipe, "rb")
    assert raised.value.what is None


_HANGS = """
import sys
from audiovae_jax.data.audio import deadline
try:
    deadline.within(0.2, open, sys.argv[1], "rb")
except deadline.TimedOutError:
    print("given up", flush=True)
"""


def test_a_program_ends_whatever_hangs(tmp_path, hanging):
    pipe = hanging(tmp_path / "pipe")
    ended = subprocess.run([sys.executable, "-c", _HANGS, str(pipe)], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "given up\n", "")


@pytest.fixture
def config(tmp_path):
    """Of a manifest of three files and a pipe."""
    rng = np.random.default_rng(0)
    names = ("a.wav", "b.wav", "c.wav")
    for name in names:
        soundfile.write(tmp_path / name, 0.3 * rng.standard_normal((8000, 2)), 44100)
    lines = [{"path": name, "split": "validation" if name == "a.wav" else "train"} for name in (*names, "pipe.wav")]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = base.get_config().data
    config.update({"root": str(tmp_path / "list.jsonl"), "index": False, "read_timeout": 0.3, "crop_length": 1024})
    config.max_bad_share = 0.9
    return config


def test_crops_go_on_without_files_that_hang(config, tmp_path, hanging):
    warned = []
    hanging(tmp_path / "pipe.wav")
    began = time.monotonic()
    data = pipeline.open_data(config, batch_size=4, seed=0, warn=warned.append)
    assert time.monotonic() - began < 20.0
    assert data.catalog.skipped == ((str(tmp_path / "pipe.wav"), "not a regular file"),)
    expected = {i: data.train[i] for i in range(8)}
    # What was a file when it was looked at hangs from now on.
    hanging(tmp_path / "b.wav")
    # In one batch: what was read before it hangs is read again.
    crops = next(
        pipeline.batches(data.train, batch_size=8, start_step=0, num_steps=1, num_threads=1, prefetch_batches=1)
    )
    changed = [i for i in range(8) if (crops[i] != expected[i]).any()]
    assert 0 < len(changed) < 8
    assert data.health.replaced_crops >= len(changed)
    assert ["b.wav: reading did not return within data.read_timeout=0.3 s" in text for text in warned] == [True]
    assert data.health.is_bad(str(tmp_path / "b.wav"))
