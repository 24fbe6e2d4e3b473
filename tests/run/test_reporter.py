import os
import time

import numpy as np
import pytest
import soundfile

from audiovae_jax.run import reporter as module
from audiovae_jax.run.reporter import Reporter
from audiovae_jax.run.samples import Sample
from audiovae_jax.run.tracking import events
from audiovae_jax.run.tracking.writer import Writer


def _reporter(workdir, **options):
    options = {"start_step": 0, "first_step": 0, "num_steps": 30, "sample_rate": 8000, **options}
    return Reporter(workdir, **options)


def test_scalars_are_events_at_intervals_and_the_bar_advances(tmp_path, capsys):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reporter = _reporter(tmp_path)
    for step in range(1, 31):
        reporter.step(step, {"train/total_g_loss": float(step), "train/unseen": 1.0})
    reporter.say("a line")
    reporter.close()
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("train/total_g_loss")] == [1, 10, 20, 30]
    printed = capsys.readouterr()
    assert "30/30" in printed.err
    assert "G 30" in printed.err
    assert "a line" in printed.out + printed.err


def test_steps_per_second_are_of_what_is_between_but_for_compiling(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    recorded = []
    writer = Writer()
    monkeypatch.setattr(writer, "scalars", lambda metrics, step: recorded.append((step, metrics)))
    reporter = _reporter(tmp_path, writers=lambda say: writer)
    for step in range(1, 21):
        clock[0] += 0.5
        if step == 15:
            with reporter.timed("compiling"):
                clock[0] += 100.0
        reporter.step(step, {"train/learning_rate": 1e-3 / step, "train/discriminator_learning_rate": 1e-4})
    speeds = {step: metrics.get("perf/steps_per_second") for step, metrics in recorded}
    assert speeds == {1: None, 10: 2.0, 20: 2.0}
    assert reporter.pace == "; learning rates 5e-05, 0.0001; 2 steps/s"
    reporter.rewind(5, first_step=5)
    reporter.step(10, {})
    assert "perf/steps_per_second" not in recorded[-1][1]  # the steps in between belong to an earlier session
    reporter.close()


def test_rates_follow_the_speed(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    recorded = {}
    writer = Writer()
    monkeypatch.setattr(writer, "scalars", lambda metrics, step: recorded.update({step: metrics}))
    reporter = _reporter(tmp_path, writers=lambda say: writer)
    reporter.rate("perf/audio_seconds_per_second", 3.0)
    for step in range(1, 21):
        clock[0] += 0.5
        reporter.step(step, {})
    reporter.close()
    assert recorded[20] == {"perf/steps_per_second": 2.0, "perf/audio_seconds_per_second": 6.0}


def test_peak_memory_is_that_of_the_fullest_device():
    class Device:
        def __init__(self, statistics):
            self.memory_stats = lambda: statistics

    two = [Device({"peak_bytes_in_use": peak}) for peak in (2e9, 3e9)]
    assert module.peak_memory(two) == {"perf/peak_memory_gigabytes": 3.0}
    assert module.peak_memory([*two, Device(None)]) == {}
    assert module.peak_memory([Device({"bytes_in_use": 1})]) == {}


@pytest.mark.slow
def test_samples_are_audio_and_pictures(tmp_path):
    reporter = _reporter(tmp_path)
    audio = [np.full((2000, 2), 1.5, np.float32), np.zeros((2000, 2), np.float32)]
    reporter.samples(7, [Sample("a", *audio), Sample("b", *audio[::-1])])
    reporter.close()
    folder = tmp_path / "samples" / "step_00000007"
    names = [f"{i}{ending}" for i in range(2) for ending in (".png", "_original.wav", "_reconstruction.wav")]
    assert sorted(path.name for path in folder.iterdir()) == names
    written, rate = soundfile.read(folder / "0_original.wav")
    assert (rate, written.shape, written.max()) == (8000, (2000, 2), pytest.approx(1, abs=1e-4))  # clipped


def test_a_full_disk_costs_the_samples_and_not_the_run(tmp_path, full_disk, capsys):
    reporter = _reporter(tmp_path)
    audio = [np.random.default_rng(0).uniform(-1, 1, (100_000, 2)).astype(np.float32)]
    with full_disk(50_000):
        reporter.samples(7, [Sample("a", *audio, *audio)])
    reporter.close()
    printed = capsys.readouterr()
    assert "warning: the samples of step 7 were not written" in printed.out + printed.err


def test_other_hosts_write_nothing(tmp_path, capsys):
    reporter = _reporter(tmp_path, enabled=False)
    reporter.step(1, {"train/total_g_loss": 1.0})
    reporter.scalars(1, {"x": 1.0})
    reporter.samples(1, [Sample("a", np.zeros((10, 1)), np.zeros((10, 1)))])
    reporter.flush()
    with reporter.timed("work"):
        pass
    reporter.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_long_steps_are_announced_and_timed():
    said = []
    with module.timed("compiling", said.append):
        assert said == ["compiling ..."]
    assert said[1].startswith("compiling: 0.0 s")


def test_events_on_a_full_disk_are_left_out_until_there_is_space(tmp_path, full_disk, capsys, monkeypatch):
    reporter = _reporter(tmp_path)
    with full_disk(20_000):
        for step in range(1, 2000):  # tensorboardX's own writer hangs here
            reporter.scalars(step, {"train/total_g_loss": 1.0})
            reporter.flush()
    monkeypatch.setattr(events, "_AGAIN_AFTER", 0.0)
    reporter.flush()
    reporter.scalars(2000, {"train/total_g_loss": 1.0})
    reporter.close()
    printed = capsys.readouterr()
    printed = printed.out + printed.err
    assert printed.count("warning: writing TensorBoard events failed, and is retried later: File too large") == 1
    assert printed.count("TensorBoard events are written again") == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_flushed_records_are_on_disk(tmp_path, monkeypatch):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first_step in (0, 2):  # the second session hides the first one's records from step 2 on
        monkeypatch.setattr(os, "getpid", lambda first_step=first_step: 1000 + first_step)
        again = _reporter(tmp_path, first_step=first_step)
        for step in range(first_step, 4):
            again.scalars(step, {"x": float(first_step)})
        again.flush()
        time.sleep(1.1)  # files are ordered by their time in seconds
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("x")] == [(0, 0), (1, 0), (2, 2), (3, 2)]
