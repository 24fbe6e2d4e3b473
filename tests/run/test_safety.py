"""Numeric safety: how a run reacts to updates that are not finite."""

import dataclasses
import json
import math
import threading

import jax
import ml_collections
import numpy as np
import pytest
import soundfile
from small_step import make_recipe

from audiovae_jax import losses
from audiovae_jax.data.feeding import pipeline
from audiovae_jax.data.feeding.origin import Origin
from audiovae_jax.errors import TrainingError
from audiovae_jax.losses import WeightedLosses
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.run import train
from audiovae_jax.run.bad_batches import BadBatches
from audiovae_jax.run.loop import Loop
from audiovae_jax.run.safety import RollBack, Safety
from audiovae_jax.run.validation import Validation

AUDIO = np.zeros((2, 8, 1), np.float32)


class Records:
    """A run's records, with NaN in the batches of given steps and orders."""

    def __init__(self, records, batch_size, bad, order=0):
        self._records, self._batch_size, self._bad, self._order = records, batch_size, bad, order

    def in_order(self, order):
        return Records(self._records.in_order(order), self._batch_size, self._bad, order)

    def origin(self, index):
        return Origin("a.wav", float(index))

    def __getitem__(self, index):
        record = self._records[index]
        if (self._order, index // self._batch_size + 1) in self._bad:
            record = record.copy()
            record[0, 0] = np.nan
        return record


def _plant(monkeypatch, bad):
    """Put NaN into the batches of these `(order, step)`."""
    real = pipeline.open_data

    def open_data(config, *, batch_size, **options):
        data = real(config, batch_size=batch_size, **options)
        return dataclasses.replace(data, train=Records(data.train, batch_size, bad))

    monkeypatch.setattr(pipeline, "open_data", open_data)


def _config(config, steps):
    config.use_adversarial = False
    config.num_steps, config.validate_every, config.checkpoint_every, config.sample_every = steps, steps, 2, steps
    return config


def _assert_same_state(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.mark.slow
def test_a_bad_batch_is_skipped_reported_and_saved(micro_config, tmp_path, monkeypatch, capsys):
    _plant(monkeypatch, {(0, 3)})
    state = train.train(_config(micro_config, 5), tmp_path)
    assert state.step == 5
    assert int(state.opt_state[1].count) == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state)))
    printed = capsys.readouterr().out
    assert "warning: step 3: the update of the generator was skipped; not finite: train/total_g_loss nan, " in printed
    assert "a.wav at 8.00 s, a.wav at 9.00 s, a.wav at 10.00 s, a.wav at 11.00 s" in printed
    assert "4 of them contain NaN or infinite samples" in printed
    assert "warning: skipped updates: 1 of the generator; their batches are in" in printed
    described = json.loads((tmp_path / "bad_batches" / "step_00000003.json").read_text())
    assert (described["step"], described["order"]) == (3, 0)
    assert described["metrics"]["train/total_g_loss"] == "nan"
    assert described["rows"][1] == {"record": 9, "file": "a.wav", "start_seconds": 9.0, "is_finite": False}
    audio, rate = soundfile.read(tmp_path / "bad_batches" / "step_00000003" / "1.wav", dtype="float32")
    clean = pipeline.open_data(micro_config.data, batch_size=4, seed=0).train.in_order(9)[9]
    assert rate == 44100
    assert np.isnan(audio[0, 0])
    assert audio.shape == clean.shape
    store = Checkpoints(tmp_path / "checkpoints", read_only=True)
    position = store._run(5)["data"]
    assert position["skipped"] == {"g": 1, "d": 0}
    assert position["skipped_in_a_row"] == {"g": 0, "d": 0}
    assert math.isfinite(store.metrics(5)["total_loss"])


@pytest.mark.slow
def test_too_many_in_a_row_go_back_to_other_crops_and_a_resumed_run_does_the_same(
    micro_config, tmp_path, monkeypatch, capsys
):
    config = _config(micro_config, 8)
    config.checkpoint_every = 3
    config.safety.max_skipped = 3
    _plant(monkeypatch, {(0, 5), (0, 6), (0, 7), (1, 5)})
    whole = train.train(config, tmp_path / "whole")
    printed = capsys.readouterr().out
    assert (
        "warning: 3 updates of the generator in a row were skipped: rolling back to checkpoint 3, with the data in "
        "a different order (rollback 1 of at most 3)"
    ) in printed
    assert "skipped updates: 4 of the generator, and the run was rolled back once" in printed
    store = Checkpoints(tmp_path / "whole" / "checkpoints", read_only=True)
    assert store.steps()[-1] == 8
    assert store._run(8)["data"]["order"] == 1
    # Killed at each batch, one after the other, and resumed.
    real = Loop.next_batch
    for stop_at in (7, 12):
        calls = []

        def stop(self, *args, calls=calls, stop_at=stop_at):
            calls.append(1)
            if len(calls) == stop_at:
                self._session.checkpoints.wait()
                raise KeyboardInterrupt
            return real(self, *args)

        monkeypatch.setattr(Loop, "next_batch", stop)
        with pytest.raises(KeyboardInterrupt):
            train.train(config, tmp_path / str(stop_at))
        monkeypatch.setattr(Loop, "next_batch", real)
        _assert_same_state(train.train(config, tmp_path / str(stop_at)), whole)


@pytest.mark.slow
def test_readers_are_closed_at_a_rollback_and_at_an_error(micro_config, tmp_path, monkeypatch):
    config = _config(micro_config, 8)
    config.safety.max_skipped = 3
    _plant(monkeypatch, {(0, 5), (0, 6), (0, 7)})
    real, readers, others = Loop.next_batch, [], set(threading.enumerate())

    def fail(self, stalls, *args):
        if stalls not in readers:
            readers.append(stalls)  # which keeps its iterator
        if len(readers) == 2:
            raise KeyboardInterrupt
        return real(self, stalls, *args)

    monkeypatch.setattr(Loop, "next_batch", fail)
    with pytest.raises(KeyboardInterrupt):
        train.train(config, tmp_path)
    assert len(readers) == 2
    for thread in set(threading.enumerate()) - others:
        if thread.name.startswith("grain"):
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.slow
@pytest.mark.parametrize(("at", "target", "moved"), [(3, "the beginning", "2"), (6, "checkpoint 3", "5")])
def test_a_rollback_goes_to_a_validated_checkpoint(micro_config, tmp_path, monkeypatch, capsys, at, target, moved):
    config = _config(micro_config, 6)
    config.checkpoint_every = 3
    real = Validation.validate

    def validate(self, state, step):
        if step == at and self._session.safety.order == 0:
            self._session.safety.require_finite_validation(step, math.nan)
        return real(self, state, step)

    monkeypatch.setattr(Validation, "validate", validate)
    states = []
    for name, minutes in (("plain", 0.0), ("timed", 1e-9)):  # the second saves after every step but the first
        config.checkpoint_every_minutes = minutes
        states.append(train.train(config, tmp_path / name))
        assert f"val/total_loss became nan at step {at}: rolling back to {target}, with" in capsys.readouterr().out
    _assert_same_state(*states)
    assert not (tmp_path / "plain" / "damaged_checkpoints").exists()
    assert [path.name for path in (tmp_path / "timed" / "damaged_checkpoints").iterdir()] == [moved]
    stores = [Checkpoints(tmp_path / name / "checkpoints", read_only=True) for name in ("plain", "timed")]
    assert [store.steps() for store in stores] == [[3, 6], [3, 5, 6]]
    assert stores[0].best() == stores[1].best()


@pytest.mark.slow
def test_a_run_that_cannot_continue_ends_with_a_report(micro_config, tmp_path, monkeypatch, capsys):
    def overflowing(*, prediction, target):
        import jax.numpy as jnp

        return jnp.float32(jnp.square(jnp.bfloat16(1e20) * (1 + jnp.mean(prediction)).astype(jnp.bfloat16)))

    monkeypatch.setattr(losses, "overflowing_for_test", overflowing, raising=False)
    section = {"_target_": "audiovae_jax.losses.overflowing_for_test", "weight": 1e-9}
    config = _config(micro_config, 20)
    config.losses.overflowing = ml_collections.ConfigDict(section)
    config.safety.max_skipped, config.safety.max_rollbacks = 2, 1
    with pytest.raises(TrainingError, match="val/total_loss became inf at step 0, before the first update"):
        train.train(config, tmp_path / "at once")
    real = Validation.validate

    def validate(self, state, at):  # a loss that overflows only in training
        monkeypatch.setattr(self._session.safety, "require_finite_validation", lambda step, loss: None)
        return real(self, state, at)

    monkeypatch.setattr(Validation, "validate", validate)
    with pytest.raises(TrainingError) as caught:
        train.train(config, tmp_path / "run")
    report = str(caught.value)
    assert (
        "training cannot continue: 2 updates of the generator in a row were skipped, and the run was rolled back"
        in report
    )
    assert "at step 2: not finite: train/total_g_loss inf, " in report
    assert "train/overflowing inf" in report
    assert "checkpoint: none" in report
    assert "try: another config.losses.overflowing; not finite, unlike other losses: overflowing" in report
    assert "rolling back to the beginning" in capsys.readouterr().out
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert sorted(p.name for p in (tmp_path / "run" / "bad_batches").glob("*.json")) == [
        "step_00000001.json", "step_00000001_order_1.json", "step_00000002.json", "step_00000002_order_1.json",
    ]  # fmt: skip


def _safety(tmp_path, said, position=None, **changes):
    section = ml_collections.ConfigDict({"max_skipped": 3, "max_rollbacks": 1, "kept_batches": 1} | changes)
    terms = (("l1", 1.0, losses.waveform_l1),)
    recipe = make_recipe(losses=WeightedLosses(terms), adversarial=None, discriminator_update_every=2)
    batches = BadBatches(tmp_path, 8000, section.kept_batches, 0, said.append)
    return Safety(section, recipe, batches, said.append, position or {})


class _Named:
    def origin(self, index):
        return Origin("a.wav", 0.5) if index % 2 else None


def _see(safety, step, g=0.0, d=None):
    metrics = {"train/g_skipped": g, "train/total_g_loss": math.nan if g else 1.0}
    if d is not None:
        metrics |= {"train/d_skipped": d, "train/d_loss": math.inf if d else 1.0}
    return safety.see(step, metrics, lambda: AUDIO, 2 * (step - 1), _Named())


def test_each_networks_row_is_its_own(tmp_path):
    safety = _safety(tmp_path, [])
    # The discriminator is due only at every other step. The generator's updates in between do not reset its count.
    for step in range(1, 6):
        counts = _see(safety, step, d=float(step % 2))
        if step < 5:
            safety.require_progress()
    assert counts == {"train/skipped_g_updates": 0.0, "train/skipped_d_updates": 3.0}
    with pytest.raises(RollBack, match="3 updates of the discriminator in a row were skipped"):
        safety.require_progress()
    assert not safety.is_whole
    _see(safety, 7, d=0.0)
    assert safety.is_whole


def test_a_checkpoint_waits_for_an_update_that_was_made(tmp_path):
    safety = _safety(tmp_path, [])
    assert safety.may_save(True)
    _see(safety, 1, g=1.0)
    assert not safety.may_save(True)
    _see(safety, 2, g=1.0)
    assert not safety.may_save(False)
    _see(safety, 3)
    assert safety.may_save(False)
    assert not safety.may_save(False)


def test_counts_continue_from_a_checkpoint(tmp_path):
    safety = _safety(tmp_path, [])
    for step in (1, 2):
        _see(safety, step, g=1.0)
    again = _safety(tmp_path, [], json.loads(json.dumps(safety.position())))
    assert again.position() == safety.position()
    _see(again, 3, g=1.0)
    with pytest.raises(RollBack):
        again.require_progress()
    again.roll_back(RollBack("why"), 0)
    assert again.position() == {"order": 1, "skipped": {"g": 3, "d": 0}, "skipped_in_a_row": {"g": 0, "d": 0}}
    with pytest.raises(TrainingError, match="training cannot continue: why, and the run was rolled back once"):
        again.roll_back(RollBack("why"), 0)


def test_the_report_names_the_last_update_the_files_and_a_remedy(tmp_path):
    safety = _safety(tmp_path, [], max_rollbacks=0)
    _see(safety, 1)
    for step in (2, 3, 4):
        _see(safety, step, g=1.0)
    with pytest.raises(TrainingError) as caught:
        safety.roll_back(RollBack("3 updates"), 0)
    report = str(caught.value)
    assert "at step 4: not finite: train/total_g_loss nan" in report
    assert "last update: step 1, train/total_g_loss 1" in report
    assert "a.wav (3 crops)" in report
    assert "checkpoint: 0, with finite values only" in report
    assert "try: a lower config.optimizer.learning_rate" in report


def test_a_validation_that_is_not_finite_goes_back_unless_nothing_was_trained(tmp_path):
    safety = _safety(tmp_path, [])
    safety.require_finite_validation(0, 1.0)
    with pytest.raises(TrainingError, match="val/total_loss became nan at step 0, before the first update"):
        safety.require_finite_validation(0, math.nan)
    _see(safety, 1)
    with pytest.raises(RollBack, match="val/total_loss became inf at step 1"):
        safety.require_finite_validation(1, math.inf)


def test_only_the_first_steps_audio_is_saved_and_few_rows_are_reported(tmp_path):
    said = []
    safety = _safety(tmp_path, said, max_skipped=10)
    for step in range(1, 6):
        _see(safety, step, g=1.0)
    assert len(said) == 3
    folder = tmp_path / "bad_batches"
    assert len(list(folder.glob("*.json"))) == 5
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["step_00000001"]
    assert sorted(path.name for path in (folder / "step_00000001").iterdir()) == ["0.wav", "1.wav"]
    rows = json.loads((folder / "step_00000005.json").read_text())["rows"]
    assert rows[0] == {"record": 8, "file": None, "start_seconds": None, "is_finite": True}


def test_a_full_disk_costs_the_batch_and_not_the_run(tmp_path, full_disk):
    said = []
    batches = BadBatches(tmp_path, 8000, 1, 2, said.append)
    with full_disk(1000):
        kept = batches.keep(7, 1, {"train/g_skipped": 1.0}, np.full((1, 8000, 2), np.nan, np.float32), 0, _Named())
    assert kept.not_finite == (0,)
    assert said == ["warning: the batch of step 7 was not saved: File too large"]
    assert (tmp_path / "bad_batches" / "host_2" / "step_00000007_order_1.json").exists()
