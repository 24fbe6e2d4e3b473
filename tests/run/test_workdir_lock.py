"""One run per workdir: a second run fails, a dead run's lock is taken over, and a lost lock is detected."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from audiovae_jax.errors import ConfigError, TrainingError
from audiovae_jax.run import workdir_lock
from audiovae_jax.run.workdir_lock import WorkdirLock

_HOLD = """
import sys, time
from pathlib import Path
from audiovae_jax.run.workdir_lock import WorkdirLock
WorkdirLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds the lock of the workdir."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def _rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_second_is_refused_with_the_firsts_host_process_and_start(tmp_path, other):
    lock = WorkdirLock(tmp_path / "run")
    with pytest.raises(
        ConfigError, match=rf"in use by process {other.pid} on \S+, started 20\d\d-\S+ \(last heartbeat"
    ):
        lock.acquire()
    lock.release()
    assert (tmp_path / "run" / "run.lock").exists()


def test_a_dead_run_is_taken_over_at_once_on_its_own_host(tmp_path, other):
    other.kill()
    other.wait()
    lock = WorkdirLock(tmp_path / "run")
    assert lock.acquire().pid == other.pid
    lock.require_held()
    lock.release()
    assert not (tmp_path / "run" / "run.lock").exists()


def test_a_process_of_the_same_number_is_not_mistaken_for_the_dead_one(tmp_path, other):
    _rewrite(tmp_path / "run" / "run.lock", birth="1")
    lock = WorkdirLock(tmp_path / "run")
    assert lock.acquire().pid == other.pid
    lock.release()


def test_a_run_on_another_host_is_dead_when_it_was_silent_for_a_minute(tmp_path, other):
    path = tmp_path / "run" / "run.lock"
    _rewrite(path, system="elsewhere", host="elsewhere")
    lock = WorkdirLock(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"on elsewhere, .* wait 60 s or delete .*run.lock"):
        lock.acquire()
    silent = path.stat().st_mtime - 61
    os.utime(path, (silent, silent))
    assert lock.acquire().host == "elsewhere"
    lock.release()


def test_a_file_that_cannot_be_read_counts_by_its_age(tmp_path):
    path = tmp_path / "run.lock"
    path.write_text("{half")
    with pytest.raises(ConfigError, match="in use by another run"):
        WorkdirLock(tmp_path).acquire()
    os.utime(path, (1, 1))
    lock = WorkdirLock(tmp_path)
    lock.acquire()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_the_faster_of_two_takeovers_wins(tmp_path, monkeypatch):
    """Both find the first run dead. The second moves the lock file when it is already the other's new one."""
    (tmp_path / "run.lock").write_text("{}")
    os.utime(tmp_path / "run.lock", (1, 1))
    winner, loser = WorkdirLock(tmp_path), WorkdirLock(tmp_path)
    real = workdir_lock._is_dead

    def late(holder, silent):
        monkeypatch.setattr(workdir_lock, "_is_dead", real)
        winner.acquire()
        return True

    monkeypatch.setattr(workdir_lock, "_is_dead", late)
    with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
        loser.acquire()
    winner.require_held()
    winner.release()
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_that_was_deleted_or_taken_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_lock, "_HEARTBEAT", 0.01)
    lock = WorkdirLock(tmp_path / "run")
    lock.acquire()
    shutil.rmtree(tmp_path / "run")
    lock._thread.join(10)
    with pytest.raises(TrainingError, match=r"run \(or its .*\) was deleted or moved while this run was writing to it"):
        lock.check()
    lock.release()
    lock = WorkdirLock(tmp_path / "run")
    lock.acquire()
    _rewrite(tmp_path / "run" / "run.lock", token="another", host="thief")
    with pytest.raises(TrainingError, match=r"was taken over by process \d+ on thief"):
        lock.require_held()
    lock.release()
    assert (tmp_path / "run" / "run.lock").exists()


def test_the_heartbeat_is_felt(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_lock, "_HEARTBEAT", 0.01)
    lock = WorkdirLock(tmp_path)
    lock.acquire()
    os.utime(tmp_path / "run.lock", (1, 1))
    while (tmp_path / "run.lock").stat().st_mtime < 2:
        assert lock._thread.is_alive()
    lock.release()


def test_an_unwritable_workdir_is_an_immediate_error(tmp_path):
    (tmp_path / "file").touch()
    for path in ("/proc/nope", str(tmp_path / "file" / "run"), str(tmp_path / "file")):
        with pytest.raises(ConfigError, match=r"--workdir=.* cannot be written to \(.*\); give another"):
            WorkdirLock(workdir_lock.Path(path)).acquire()


def test_a_full_disk_leaves_no_lock(tmp_path, full_disk):
    with full_disk(10), pytest.raises(ConfigError, match="cannot be written to"):
        WorkdirLock(tmp_path / "run").acquire()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_a_start_that_failed(tmp_path):
    lock = WorkdirLock(tmp_path / "a" / "b")
    lock.acquire()
    lock.release()
    assert list(tmp_path.iterdir()) == []
