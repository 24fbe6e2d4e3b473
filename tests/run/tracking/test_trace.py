import os
import socket

import jax
import jax.numpy as jnp
import pytest
from processes import free_port

from audiovae_jax.errors import ConfigError
from audiovae_jax.run.tracking import trace
from audiovae_jax.run.tracking.trace import StepTrace


def test_a_range_of_steps_is_parsed():
    assert trace.steps_of("100:105") == (100, 105)
    for text in ("100", "5:5", "7:3", "a:b", "1:2:3", "-1:4"):
        with pytest.raises(ConfigError, match=f"--profile_steps={text} must be a range such as 100:105"):
            trace.steps_of(text)


def _run(traced, steps):
    """Return the steps at whose ends the trace was started and ended."""
    changes = []
    for step in steps:
        if traced.starts(step):
            traced.start(step)
            changes.append(step)
        jnp.ones(3).block_until_ready()
        if traced.ends(step + 1):
            traced.close()
            changes.append(step + 1)
    return changes


def test_a_trace_covers_its_steps_and_is_written_once(tmp_path):
    said = []
    traced = StepTrace(tmp_path, (2, 4), said.append)
    assert _run(traced, range(6)) == [2, 4]
    assert _run(traced, range(1, 6)) == [4]  # after a rollback
    (file,) = (tmp_path / trace.FOLDER).rglob("*.xplane.pb")
    assert file.stat().st_size > 1000
    assert said == [f"a profile of steps 3 to 4 is in {tmp_path / trace.FOLDER}"]


def test_other_processes_agree_on_the_steps_but_do_not_trace(tmp_path):
    traced = StepTrace(tmp_path, (2, 4), pytest.fail, enabled=False)
    assert _run(traced, range(3, 6)) == [3, 4]  # resumed in between
    traced = StepTrace(tmp_path, None, pytest.fail)
    assert _run(traced, range(6)) == []
    assert not list(tmp_path.iterdir())


def test_a_second_trace_at_the_same_time_is_a_warning(tmp_path):
    said = []
    with jax.profiler.trace(str(tmp_path / "other")):
        assert _run(StepTrace(tmp_path, (2, 4), said.append), range(6)) == [2, 4]
    assert len(said) == 1
    assert said[0].startswith("warning: no profile is written: Profile has already been started.")


@pytest.mark.skipif(not hasattr(socket, "SO_BINDTODEVICE"), reason="only Linux restricts a socket to an interface")
def test_the_profiler_server_listens_on_loopback_only():
    port = free_port()
    trace.serve(port)
    try:
        bound = []
        for name in os.listdir("/proc/self/fd"):
            try:
                found = socket.socket(fileno=os.dup(int(name)))
            except OSError:
                continue
            with found:
                if found.family in (socket.AF_INET, socket.AF_INET6) and found.getsockname()[1] == port:
                    bound.append(found.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16))
        assert bound
        assert {name.rstrip(b"\0") for name in bound} == {b"lo"}
        with socket.create_connection(("127.0.0.1", port), timeout=10):
            pass
        with pytest.raises(ConfigError, match=f"--profiler_port={port} cannot be used: Address already in use"):
            trace.serve(port)
    finally:
        jax.profiler.stop_server()
