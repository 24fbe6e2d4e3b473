import json
import subprocess

import jax
import numpy as np
import pytest

import audiovae_jax
from audiovae_jax.distributed import progress
from audiovae_jax.distributed.progress import Progress
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
    for module in (sessions, progress):
        monkeypatch.setattr(module, "time", fake)
    return fake


def _train(progress, session, clock, steps):
    """Make steps of two seconds."""
    for step in steps:
        progress.step(step)
        clock.now += 2
        session.update()


def _spent(seconds):
    return {part: spent for part, spent in seconds.items() if spent}


def test_every_second_belongs_to_one_part(clock, tmp_path):
    progress = Progress()
    clock.now += 3
    session = SessionClock(progress)
    session.open(tmp_path, 0, lambda: True)
    progress.step(1)
    clock.now += 10
    for phase, seconds in (
        ("validating", 4), ("sampling", 1), ("compiling", 20), ("saving", 2), ("reading", 6), ("waiting", 1),
    ):  # fmt: skip
        with progress.phase(phase):
            clock.now += seconds
    progress.move(2, "reading", "step")
    (found,) = session.sessions()
    assert found["started"] == 1000
    seconds = sessions.totals([found])
    expected = {"steps": 12, "compiling": 20, "validation": 5, "saving": 2, "input": 4, "other": 4}
    assert _spent(seconds) == expected
    assert sum(seconds.values()) == clock.now - 1000
    assert session.metrics()["perf/goodput"] == pytest.approx(12 / 47)
    assert session.metrics()["time/input"] == 4


def test_a_killed_session_is_on_disk_and_its_repeated_steps_are_lost(clock, tmp_path):
    progress = Progress()
    killed = SessionClock(progress)
    killed.open(tmp_path, 0, lambda: True)
    clock.now += 4
    _train(progress, killed, clock, range(1, 31))
    # The file is up to ten seconds old.
    clock.now += 100
    progress = Progress()
    resumed = SessionClock(progress)
    resumed.open(tmp_path, 20, lambda: True)
    _train(progress, resumed, clock, range(21, 41))
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
    for first, steps in ((0, [*range(1, 11), 9, 10]), (10, range(11, 16))):
        progress = Progress()
        session = SessionClock(progress)
        session.open(tmp_path, first, lambda: True)
        _train(progress, session, clock, steps)
        session.write()
    session = SessionClock(Progress())
    session.open(tmp_path, 7, lambda: True)  # the checkpoint of step 10 was damaged
    assert sessions.repeated_steps(session.sessions()) == [2 + 3, 5, 0]
    assert _spent(sessions.totals(session.sessions())) == {"steps": 2 * 7, "lost": 2 * 10}


def test_only_the_owner_of_a_workdir_writes(clock, tmp_path):
    SessionClock(Progress()).open(tmp_path, 0, lambda: False)
    assert not list(tmp_path.iterdir())
    assert sessions.read(tmp_path) == []
    for content in ("{", "[]", '{"sessions": 1}', '{"sessions": [{"first_step": 1}]}'):
        (tmp_path / sessions.NAME).write_text(content)
        assert sessions.read(tmp_path) == []
    SessionClock(Progress()).open(tmp_path, 3, lambda: True)
    assert json.loads((tmp_path / sessions.NAME).read_text())["sessions"][0]["first_step"] == 3


def test_an_unreadable_record_is_not_replaced(clock, tmp_path):
    (tmp_path / sessions.NAME).mkdir()
    session = SessionClock(Progress())
    session.open(tmp_path, 0, lambda: True)
    clock.now += 60
    session.update()
    assert (tmp_path / sessions.NAME).is_dir()
    assert len(session.sessions()) == 1


def test_versions_command_and_git_state_are_recorded_for_each_session(clock, tmp_path, monkeypatch):
    repository, workdir = tmp_path / "repository", tmp_path / "run"
    repository.mkdir()
    workdir.mkdir()

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=repository, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    (repository / "config.py").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    monkeypatch.chdir(repository)
    monkeypatch.setattr("sys.orig_argv", ["python", "train.py", "--config=a b"])
    SessionClock(Progress()).open(workdir, 0, lambda: True)
    (repository / "config.py").write_text("2")
    SessionClock(Progress()).open(workdir, 1, lambda: True)
    monkeypatch.chdir(workdir)
    monkeypatch.setenv("PATH", "")  # there is no git
    SessionClock(Progress()).open(workdir, 2, lambda: True)
    clean, dirty, without = sessions.read(workdir)
    assert clean["git"]["working_directory"] == {"commit": commit, "dirty": False}
    assert dirty["git"]["working_directory"] == {"commit": commit, "dirty": True}
    assert without["git"] == {}
    for session in (clean, dirty, without):
        assert session["command"] == "python train.py '--config=a b'"
        versions = session["versions"]
        assert (versions["audiovae_jax"], versions["jax"]) == (audiovae_jax.__version__, jax.__version__)
        assert versions["numpy"] == np.__version__
        assert None not in versions.values()
