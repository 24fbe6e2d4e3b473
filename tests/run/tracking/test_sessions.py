import contextlib
import json

import pytest

from audiovae_jax.run.tracking import sessions
from audiovae_jax.run.tracking.sessions import SessionClock


class _Time:
    def __init__(self):
        self.now = 1000.0

    def time(self):
        return self.now

    monotonic = time


@pytest.fixture
def clock(monkeypatch):
    """The time of the clocks, which tests advance."""
    fake = _Time()
    monkeypatch.setattr(sessions, "time", fake)
    return fake


def _spent(seconds):
    return {part: spent for part, spent in seconds.items() if spent}


def test_every_second_belongs_to_one_phase(clock, tmp_path):
    session = SessionClock()
    clock.now += 3
    session.open(tmp_path, 0, lambda: True)
    with session.phase("steps"):
        clock.now += 10
        with session.phase("validation"):
            clock.now += 4
            with session.phase("compiling"):
                clock.now += 20
            clock.now += 1
        with contextlib.suppress(KeyError), session.phase("saving"):
            clock.now += 2
            raise KeyError
        clock.now += 5
        session.move("input", 6)
    clock.now += 1
    seconds = sessions.totals(session.sessions())
    expected = {"steps": 9, "compiling": 20, "validation": 5, "saving": 2, "input": 6, "other": 4}
    assert _spent(seconds) == expected
    assert sum(seconds.values()) == clock.now - 1000
    assert session.metrics()["perf/goodput"] == pytest.approx(9 / 46)
    assert session.metrics()["time/input"] == 6


def test_a_killed_session_is_on_disk_and_its_repeated_steps_are_lost(clock, tmp_path):
    killed = SessionClock()
    killed.open(tmp_path, 0, lambda: True)
    clock.now += 4
    with killed.phase("steps"):
        for step in range(1, 31):
            clock.now += 2
            killed.step(step)
    # The file is up to ten seconds old.
    clock.now += 100
    resumed = SessionClock()
    resumed.open(tmp_path, 20, lambda: True)
    with resumed.phase("steps"):
        for step in range(21, 41):
            clock.now += 2
            resumed.step(step)
    resumed.write()
    found = sessions.read(tmp_path)
    assert [session["first_step"] for session in found] == [0, 20]
    last = found[0]["last_step"]
    assert 24 <= last <= 30
    seconds = sessions.totals(found)
    assert _spent(seconds) == {"steps": 40 + 40, "lost": 2 * (last - 20), "other": 4}
    assert sum(seconds.values()) + sessions.between(found) == clock.now - 1000
    assert sessions.goodput(seconds) == pytest.approx(80 / sum(seconds.values()))
    line = sessions.summary(found)
    assert line.startswith(f"goodput {sessions.goodput(seconds):.0%}: ")
    assert " in 2 sessions, 1." in line
    assert f"steps 1.3 min, other 4.0 s, lost ({last - 20} repeated steps) {2 * (last - 20)}.0 s" in line


def test_steps_are_lost_to_a_rollback_and_to_a_damaged_checkpoint(clock, tmp_path):
    for first, last in ((0, 10), (10, 15)):
        session = SessionClock()
        session.open(tmp_path, first, lambda: True)
        with session.phase("steps"):
            clock.now += last - first
            session.step(last)
            if last == 10:
                session.rewind(8)
                clock.now += 2
                session.step(10)
        session.write()
    session = SessionClock()
    session.open(tmp_path, 7, lambda: True)  # the checkpoint of step 10 was damaged
    assert sessions.repeated_steps(session.sessions()) == [2 + 3, 5, 0]
    assert _spent(sessions.totals(session.sessions())) == {"steps": 7, "lost": 10}


def test_only_the_owner_of_a_workdir_writes(clock, tmp_path):
    SessionClock().open(tmp_path, 0, lambda: False)
    assert not list(tmp_path.iterdir())
    assert sessions.read(tmp_path) == []
    for content in ("{", "[]", '{"sessions": 1}', '{"sessions": [{"first_step": 1}]}'):
        (tmp_path / sessions.NAME).write_text(content)
        assert sessions.read(tmp_path) == []
    SessionClock().open(tmp_path, 3, lambda: True)
    assert json.loads((tmp_path / sessions.NAME).read_text())["sessions"][0]["first_step"] == 3


def test_an_unreadable_record_is_not_replaced(clock, tmp_path):
    (tmp_path / sessions.NAME).mkdir()
    session = SessionClock()
    session.open(tmp_path, 0, lambda: True)
    clock.now += 60
    session.step(1)
    assert (tmp_path / sessions.NAME).is_dir()
    assert len(session.sessions()) == 1
