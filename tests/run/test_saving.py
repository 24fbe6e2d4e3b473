"""A failed checkpoint is reported at once, retried, and fatal after several failures."""

import contextlib
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiovae_jax.errors import CheckpointError
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.run import saving, train
from audiovae_jax.run.loop import Loop
from audiovae_jax.run.reporter import Reporter
from audiovae_jax.run.saving import SaveTimer, Saving
from audiovae_jax.run.validation import Validation
from audiovae_jax.training.state import TrainState


class _Store:
    """Checkpoints whose writes fail in the background, a given number of times."""

    def __init__(self, failures):
        self.failures, self.saved, self._error = failures, [], None

    def save(self, state, step):
        if self.failures > 0:
            self.failures -= 1
            self._error = f"no space at {step}"
        else:
            self.saved.append((step, state))

    def check(self):
        error, self._error = self._error, None
        if error:
            raise CheckpointError(error)

    wait = check


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(saving, "_FIRST_PAUSE", 0.0)


def test_a_failure_is_reported_at_once_and_retried_later(monkeypatch):
    said, clock = [], [100.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: clock[0])
    store = _Store(failures=2)
    tested = Saving(store, 5, said.append)
    tested.save("a", step=1)
    assert not tested.is_due_again()
    tested.check()
    assert said == [
        "warning: no space at 1 (failure 1 of config.max_failed_saves=5 in a row; training continues; next attempt "
        "in 30 s)"
    ]
    tested.check()
    assert len(said) == 1
    clock[0] += 29
    assert not tested.is_due_again()
    clock[0] += 1
    assert tested.is_due_again()
    tested.save("b", step=2)
    tested.check()
    assert "no space at 2 (failure 2 of" in said[1]
    assert "in 60 s" in said[1]
    tested.save("c", step=3)
    tested.finish()
    assert store.saved == [(3, "c")]
    assert not tested.is_due_again()


def test_a_successful_save_resets_the_count_of_failures():
    store = _Store(failures=1)
    tested = Saving(store, 2, lambda text: None)
    for step in range(6):
        store.failures = 1 - step % 2
        tested.save("a", step=step)
        tested.check()
    assert [step for step, _ in store.saved] == [1, 3, 5]
    store.failures = 2
    tested.save("a", step=7)
    tested.check()
    tested.save("a", step=8)
    with pytest.raises(CheckpointError, match="no space at 8"):
        tested.check()


def test_the_last_checkpoint_is_tried_until_it_is_written(at_once):
    store, said = _Store(failures=3), []
    tested = Saving(store, 4, said.append)
    tested.save("a", step=9)
    tested.finish()
    assert (store.saved, len(said)) == ([(9, "a")], 3)
    store.failures = 9
    tested.save("b", step=10)
    with pytest.raises(CheckpointError, match="no space at 10"):
        tested.finish()


class _Told:
    """Processes of a run; the others read what the first one decides."""

    def __init__(self, count):
        self.decisions, self.groups = {}, [self._Group(self, is_first=i == 0) for i in range(count)]

    class _Group:
        def __init__(self, told, is_first):
            self._told, self._is_first = told, is_first

        def of_first(self, name, value):
            if self._is_first:
                assert name not in self._told.decisions
                self._told.decisions[name] = value
            return self._told.decisions[name]


def test_checkpoints_by_time_are_due_at_the_same_steps_in_all_processes(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: clock[0])
    told = _Told(2)
    timers = [SaveTimer(minutes, group) for minutes, group in zip((10.0, 7.0), told.groups, strict=True)]
    saved, since, pauses = [], None, []
    for step in range(1, 2001):
        clock[0] += 2.0 if step < 1000 else 7.0
        due = [timer.is_due(step) for timer in timers]
        assert due[0] == due[1]
        if due[0] and step != 301:  # updates are being skipped at this one
            pauses.append(clock[0] - (since or 102.0))
            saved, since = [*saved, step], clock[0]
            for timer in timers:
                timer.saved()
    assert saved[:2] == [302, 602]
    assert min(pauses) > 590
    assert max(pauses) < 610
    assert len(told.decisions) < 20 * len(saved)  # a request to another process is made at these steps only
    # A rollback: the steps repeat.
    for timer in timers:
        timer.restart()
    began = clock[0]
    for step in range(50, 1000):
        clock[0] += 3.0
        due = [timer.is_due(step) for timer in timers]
        assert due[0] == due[1]
        if due[0]:
            break
    assert clock[0] - began == pytest.approx(600, abs=5)


def test_checkpoints_by_time_are_off_at_0(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: clock[0])
    timer = SaveTimer(0.0, _Told(1).groups[0])
    for step in range(1, 5):
        clock[0] += 10000.0
        assert not timer.is_due(step)


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.0, 600.0])
def test_a_retry_is_validated_if_and_only_if_the_failed_checkpoint_was(pause, micro_config, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "_FIRST_PAUSE", pause)
    micro_config.use_adversarial = False
    micro_config.num_steps, micro_config.checkpoint_every, micro_config.validate_every = 6, 4, 6
    micro_config.checkpoint_every_minutes = 1e-9  # after every step but the first
    save, validate, saved, validated = Checkpoints.save, Validation.validate, {}, []

    def failing(self, state, *, step, metrics, **described):
        if step in (2, 4):
            raise CheckpointError("no space")
        saved[step] = metrics
        save(self, state, step=step, metrics=metrics, **described)

    def counted(self, state, at):
        validated.append(at)
        return validate(self, state, at)

    monkeypatch.setattr(Checkpoints, "save", failing)
    monkeypatch.setattr(Validation, "validate", counted)
    train.train(micro_config, tmp_path)
    assert validated == [0, 4, 5, 6]
    assert {step: "total_loss" in metrics for step, metrics in saved.items()} == {3: False, 5: True, 6: True}
    best = Checkpoints(tmp_path / "checkpoints", read_only=True).best()
    assert best[1] == min(saved[step]["total_loss"] for step in (5, 6))


def _small_disk(tmp_path, megabytes):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    return folder


def _fill(folder):
    with open(folder / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            return


def _train_while(config, workdir, monkeypatch, fill, free):
    """Train with a disk that is full from step 2's checkpoint until the first message.

    Returns `(messages, final state)`.
    """
    save, say, said = Loop.save, Reporter.say, []

    def filled(self, state, done, metrics):
        if done == 2:
            fill()
        save(self, state, done, metrics)

    def heard(self, text):
        said.append(text)
        if "was not written" in text:
            free()
        say(self, text)

    monkeypatch.setattr(Loop, "save", filled)
    monkeypatch.setattr(Reporter, "say", heard)
    config.use_adversarial = False
    config.num_steps, config.checkpoint_every, config.sample_every = 4, 2, 100
    state = train.train(config, workdir)
    return [text for text in said if text.startswith("warning: a checkpoint")], state


def _assert_went_on(workdir, said, state, reason):
    assert len(said) == 1
    assert f"checkpoints: {reason}; intact checkpoints: none" in said[0]
    assert "(failure 1 of config.max_failed_saves=10 in a row; training continues; next attempt in 0 s)" in said[0]
    store = Checkpoints(workdir / "checkpoints", read_only=True)
    assert store.steps()[-1] == 4
    params = store.parts(4, ("params",))["params"]
    jax.tree.map(np.testing.assert_array_equal, params, state.params)
    assert not list((workdir / "checkpoints").glob("*tmp*"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's own threads
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_save_on_a_full_disk_is_reported_between_steps_and_leaves_nothing(at_once, tmp_path, full_disk):
    params = {"a": jnp.asarray(np.random.default_rng(0).standard_normal(500_000))}
    state = TrainState(step=jnp.int32(0), params=params, latent_statistics={}, opt_state=())
    described, said = {"config": {}, "data": {}, "metrics": {"total_loss": 1.0}}, []
    store = Checkpoints(tmp_path / "checkpoints", kept=1)
    tested = Saving(store, 10, said.append)
    tested.save(state.replace(params={}), step=1, **described)
    store.wait()
    with full_disk(200_000):
        tested.save(state, step=2, **described)
        deadline = time.monotonic() + 60
        while not said:
            tested.check()
            assert time.monotonic() < deadline
    assert "checkpoints: File too large; intact checkpoints: 1 (failure 1 of" in said[0]
    assert store.steps() == [1]
    assert tested.is_due_again()
    tested.save(state, step=3, **described)
    tested.finish()
    store.close()
    # Step 1 is the best.
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name != "1"] == ["3"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's own threads
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_outlives_a_disk_that_is_full_for_a_while(at_once, micro_config, tmp_path, monkeypatch, full_disk):
    with contextlib.ExitStack() as full:
        said, state = _train_while(
            micro_config, tmp_path, monkeypatch, lambda: full.enter_context(full_disk(5_000)), full.close
        )
    _assert_went_on(tmp_path, said, state, "File too large")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's own threads
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_outlives_a_small_disk_that_fills(at_once, micro_config, tmp_path, monkeypatch):
    disk = _small_disk(tmp_path, megabytes=8)
    try:
        said, state = _train_while(
            micro_config, disk / "run", monkeypatch, lambda: _fill(disk), (disk / "filler").unlink
        )
        print("\n".join(said))
        _assert_went_on(disk / "run", said, state, "No space left on device")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
