"""How processes agree, with a store in memory and a thread for each; `test_several_processes` has real ones."""

import itertools
import threading
import time

import jax
import pytest

from audiovae_jax.distributed import agreement
from audiovae_jax.distributed import group as module
from audiovae_jax.distributed.background import Background
from audiovae_jax.distributed.group import Group
from audiovae_jax.errors import ConfigError, DataError, StuckError, TrainingError


class _Store:
    """The key-value store of `jax.distributed`, in memory."""

    def __init__(self):
        self._values, self._lock = {}, threading.Lock()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self._lock:
            if key in self._values and not allow_overwrite:
                raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: {key}")
            self._values[key] = value

    def key_value_dir_get(self, prefix):
        with self._lock:
            return [(key, value) for key, value in self._values.items() if key.startswith(prefix)]

    def blocking_key_value_get(self, key, milliseconds):
        deadline = time.monotonic() + milliseconds / 1000
        while time.monotonic() < deadline:
            with self._lock:
                if key in self._values:
                    return self._values[key]
            time.sleep(0.001)
        raise jax.errors.JaxRuntimeError(f"DEADLINE_EXCEEDED: {key}")


@pytest.fixture
def processes(monkeypatch):
    """Returns a function that makes and enters the groups of a run's processes."""
    jax.devices()  # it uses a client that exists
    monkeypatch.setattr(module.distributed.global_state, "client", _Store())
    monkeypatch.setattr(module, "_runs", itertools.repeat(0))
    monkeypatch.setattr(module, "_PERIOD", 0.02)
    made = []

    def make(count, heartbeat_timeout=30.0, **options):
        for index in range(count):
            group = Group(heartbeat_timeout, **options)
            group.index, group.count = index, count
            made.append(group.__enter__())
        return made

    yield make
    threads = [threading.Thread(target=group.__exit__) for group in made[::-1]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _each(groups, call):
    """Return the result or the error of `call(group)` for each group, each in its own thread."""
    results = [None] * len(groups)

    def run(i):
        try:
            results[i] = call(groups[i])
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(groups))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def test_they_wait_for_each_other_and_receive_the_first_ones_value(processes):
    groups = processes(3)
    assert _each(groups, lambda g: g.meet("place", same={"a": [1, 2]}, tell=g.index + 7)) == [7, 7, 7]


def test_the_first_one_tells_its_value_without_waiting(processes):
    groups = processes(3)
    assert groups[0].of_first("save/0", [True, 7]) == [True, 7]
    assert [group.of_first("save/0", [False, 3]) for group in groups[1:]] == [[True, 7], [True, 7]]
    assert Group().of_first("save/0", [False, 3]) == [False, 3]


def test_a_difference_is_named_to_all(processes):
    groups = processes(3)

    def start(group):
        with group.together():
            group.meet("config", same={"seed": 1 if group.index == 2 else 0, "kl.weight": 0.5})

    said = _each(groups, start)
    assert {type(error) for error in said} == {ConfigError}
    assert len({str(error) for error in said}) == 1
    assert "process 2 of 3 (on " in str(said[0])
    assert "seed: 0 in process 0, 1 there" in str(said[0])
    assert "kl.weight" not in str(said[0])


def test_all_stop_at_one_step_that_none_has_passed(processes):
    groups = processes(3)
    stopped = {}

    def train(group):
        for step in range(10_000):
            reason = group.stop_reason()
            if reason is not None:
                stopped[group.index] = step
                return reason
            if step == 5 and group.index == 1:
                group.ask_to_stop("SIGTERM")
            time.sleep(0.002 * (group.index + 1))  # every process is at another step
        return None

    assert _each(groups, train) == ["SIGTERM (in process 1 of 3)"] * 3
    assert len(set(stopped.values())) == 1
    assert stopped[0] > 5


def test_none_waits_for_a_call_at_whose_end_all_stop(processes):
    groups = processes(3)
    never, seen = threading.Event(), {}

    def train(group):
        for _ in range(20):
            assert group.stop_reason() is None
            assert group.stop_reason_after(Background(lambda: time.sleep(0.001 * group.index))) is None
            time.sleep(0.002 * (group.index + 1))
        seen[group.index] = True
        if group.index == 2:
            group.ask_to_stop("SIGTERM")
        return group.stop_reason_after(Background(never.wait))

    try:
        assert _each(groups, train) == ["SIGTERM (in process 2 of 3)"] * 3
        assert len(seen) == 3
    finally:
        never.set()


def test_a_failure_is_heard_during_a_call(processes):
    groups = processes(2)
    never = threading.Event()

    def train(group):
        with group.together():
            if group.index == 1:
                raise DataError("a.wav: cannot be read")
            group.stop_reason_after(Background(never.wait))

    try:
        assert [type(error) for error in _each(groups, train)] == [DataError] * 2
    finally:
        never.set()


def test_the_first_failure_ends_all(processes):
    groups = processes(3)

    def train(group):
        with group.together():
            for step in range(10_000):
                group.stop_reason()
                if step == 3 and group.index == 1:
                    raise DataError("a.wav: cannot be read")
                time.sleep(0.002)

    said = _each(groups, train)
    assert [type(error) for error in said] == [DataError] * 3
    assert len({str(error) for error in said}) == 1
    assert str(said[0]).startswith("process 1 of 3 (on ")
    assert str(said[0]).endswith("): a.wav: cannot be read")


def test_a_fault_of_the_program_keeps_its_traceback_where_it_is(processes):
    groups = processes(2)

    def train(group):
        with group.together():
            if group.index == 0:
                raise KeyError("step")
            while True:
                group.stop_reason()
                time.sleep(0.002)

    said = _each(groups, train)
    assert [type(error) for error in said] == [KeyError, TrainingError]
    assert "KeyError: 'step'" in str(said[1])


def test_silence_is_death_and_a_collective_that_fails_waits_for_that_news(processes):
    groups = processes(2, heartbeat_timeout=0.4)
    time.sleep(0.2)  # both have sent heartbeats
    groups[1]._left.set()  # killed: it sends nothing more, not even a goodbye

    def train(group):
        with group.together():
            raise jax.errors.JaxRuntimeError("INTERNAL: Connection closed by peer")

    (said,) = _each(groups[:1], train)
    assert isinstance(said, TrainingError)
    assert str(said).startswith("process 1 of 2 (on ")
    assert "sent no heartbeat for 0 s" in str(said)


def _until_stopped(group):
    with group.together():
        while True:
            group.stop_reason()
            time.sleep(0.002)


def test_the_process_furthest_behind_is_stuck_and_all_show_their_stacks(processes, capfd):
    groups = processes(3, stuck_timeout=0.3)
    for group in groups:
        group.progress.step(6)
    with groups[1].progress.phase("reading"), groups[0].progress.phase("reading"), groups[2].progress.phase("reading"):
        for waits in (groups[0], groups[2]):
            waits.progress.step(7)
        said = _each(groups, _until_stopped)
    assert {type(error) for error in said} == {StuckError}
    assert "process 1 of 3 (on " in str(said[0]).partition("waiting for that")[0]
    assert "; phase reading, step 6); waiting for that: process 0 of 3" in str(said[0])
    shown = capfd.readouterr().err
    for index in range(3):
        assert f"stacks of process {index} of 3: no progress" in shown
    assert shown.count("most recent call first") >= 3
    assert "in _until_stopped" in shown


def test_a_process_that_others_wait_for_may_compile_for_any_time(processes):
    groups = processes(2, stuck_timeout=0.2)
    with groups[1].progress.phase("compiling"):
        groups[0].progress.step(1)
        time.sleep(0.6)
        assert groups[0].stop_reason() is None


def test_the_one_of_several_in_a_phase_that_has_not_called_is_stuck(processes, monkeypatch):
    groups = processes(2, stuck_timeout=0.2)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with groups[0].progress.phase("restoring"), groups[1].progress.phase("restoring"):
        threading.Thread(target=agreement.any_reason, args=(None,), daemon=True).start()  # as process 0
        said = _each(groups, _until_stopped)
    assert {type(error) for error in said} == {StuckError}
    assert str(said[0]).startswith("no progress for 0 s in process 1 of 2 (on ")
    assert "waiting for that: process 0 of 2" in str(said[0])


def test_a_checkpoint_being_written_delays_the_end_of_a_process(processes, monkeypatch):
    monkeypatch.setattr(module, "_GRACE", 0.1)
    monkeypatch.setattr(module, "_WRITING_GRACE", 30.0)
    ended, writing = threading.Event(), threading.Event()
    monkeypatch.setattr(module.os, "_exit", lambda status: ended.set())
    groups = processes(2)
    writing.set()
    for group in groups:
        group.let_write(writing.is_set)
    with pytest.raises(DataError), groups[1].together():
        raise DataError("a.wav: cannot be read")
    assert not ended.wait(1)
    writing.clear()
    assert ended.wait(20)


def test_the_slowest_is_found(processes):
    groups = processes(3)
    for group, fraction in zip(groups, (0.1, 0.4, 0.2), strict=True):
        group.slowest(fraction)
    time.sleep(0.3)
    fraction, name = groups[0].slowest(0.15)
    assert fraction == 0.4
    assert name.startswith("process 1 of 3 (on ")
    assert groups[0].slowest(0.5)[0] == 0.5


def test_who_has_left_is_not_missed(processes):
    groups = processes(2, heartbeat_timeout=0.2)
    time.sleep(0.1)
    groups[1].__exit__()
    time.sleep(0.5)
    assert groups[0].stop_reason() is None


def test_a_process_that_does_not_come_out_is_ended(processes, monkeypatch):
    """Its main thread waits for a collective operation that the failed process never joins."""
    ended = threading.Event()
    monkeypatch.setattr(module, "_GRACE", 0.2)
    monkeypatch.setattr(module.os, "_exit", lambda status: ended.set())
    reported = []
    groups = processes(2, report=reported.append)
    let_go = threading.Event()
    groups[0].before_exit(let_go.set)
    with pytest.raises(DataError), groups[1].together():
        raise DataError("a.wav: cannot be read")
    assert let_go.wait(20)
    assert ended.wait(10)
    assert "a.wav: cannot be read" in str(reported[0])


def test_a_single_process_stops_when_asked():
    with Group() as group:
        assert group.meet("place", tell=3) == 3
        assert group.stop_reason() is None
        group.ask_to_stop("SIGTERM")
        assert group.stop_reason() == "SIGTERM"
        with pytest.raises(DataError, match="^gone$"), group.together():
            raise DataError("gone")
