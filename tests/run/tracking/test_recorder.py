import json
import threading

import numpy as np
import pytest

from audiovae_jax import load_model, save_model
from audiovae_jax.errors import ConfigError
from audiovae_jax.html import picture
from audiovae_jax.run.reporter import Reporter
from audiovae_jax.run.tracking import history, json_lines, page, recorder
from audiovae_jax.run.tracking.json_lines import JsonLines
from audiovae_jax.run.tracking.writer import Writer, Writers
from configs import base


def test_names_that_are_none_are_refused(micro_config):
    micro_config.logging.writers = ("tensorbord",)
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        recorder.check(micro_config)


def test_a_missing_writer_is_an_error_before_the_run(micro_config, monkeypatch):
    micro_config.logging.writers = ("mlflow",)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed; pip install"):
        recorder.check(micro_config)


def test_a_run_is_in_json_lines_and_on_a_page(trained_run, tmp_path):
    workdir, config, _ = trained_run
    run = history.read(workdir)
    assert run.scalars["val/total_loss"][0].tolist() == [0, 1, 2]
    assert run.scalars["train/total_g_loss"][0].tolist() == [1]
    rate = config.optimizer.learning_rate
    assert run.scalars["train/learning_rate"][1] == pytest.approx([rate])
    page.write([run], base.get_config().to_dict(), tmp_path / "report.html", sample_steps=2)
    # The original, and its reconstruction after the last step.
    assert (tmp_path / "report.html").read_text().count("<audio") == 2


def test_without_tensorboard_there_are_no_events(micro_config, tmp_path):
    micro_config.logging.writers = ()
    writers = recorder.open_writers(micro_config, tmp_path, 0, pytest.fail)
    writers.scalars({"x": 1.0}, 0)
    writers.close(True)
    assert [path.name for path in tmp_path.iterdir()] == [json_lines.NAME]


def test_output_of_the_reporter_is_recorded(tmp_path):
    reporter = Reporter(
        tmp_path, start_step=0, first_step=0, num_steps=30, sample_rate=8000,
        writers=lambda warn: Writers([JsonLines(tmp_path, 0, warn)]),
    )  # fmt: skip
    for step in range(1, 21):
        reporter.step(step, {"train/x": float(step)})
    reporter.say("warning: something is odd")
    reporter.say("nothing is odd")
    reporter.close()
    run = history.read(tmp_path)
    assert run.remarks == [(20, "warning", "something is odd")]
    assert run.scalars["train/x"][0].tolist() == [1, 10, 20]


def test_a_full_disk_gives_one_warning_even_though_warnings_are_recorded(tmp_path, full_disk, capsys):
    reporter = Reporter(
        tmp_path, start_step=0, first_step=0, num_steps=30, sample_rate=8000,
        writers=lambda warn: Writers([JsonLines(tmp_path, 0, warn)]),
    )  # fmt: skip
    with full_disk(1_000):
        for step in range(1, 200):
            reporter.scalars(step, {"train/x": 1.0})
    reporter.close()
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count("warning: writing metrics.jsonl failed, and is retried later") == 1


def test_a_thread_that_has_to_say_something_at_the_end_may(tmp_path):
    said = []

    class Late(Writer):
        def close(self, finished):
            thread = threading.Thread(target=lambda: writers.text("warning", "late", 1))
            thread.start()
            thread.join(5)
            said.append(thread.is_alive())

    writers = Writers([JsonLines(tmp_path, 0, pytest.fail), Late()])
    writers.close(True)
    assert said == [False]
    assert [record["text"] for record in json_lines.read(tmp_path / json_lines.NAME)] == ["late"]


@pytest.mark.slow
def test_mlflow_records_a_run_and_resumes_it(micro_config, trained_run, tmp_path):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow.tracking import MlflowClient

    micro_config.logging.writers = ("mlflow",)
    micro_config.logging.mlflow_experiment = "tests"
    workdir = tmp_path / "run"
    workdir.mkdir()
    model, variables = load_model(trained_run[0])
    save_model(model, variables, tmp_path / "model")
    said = []
    for first, num_threads, finished in ((0, 1, False), (3, 2, True)):
        micro_config.data.num_threads = num_threads  # which may differ when a run is resumed
        writers = recorder.open_writers(micro_config, workdir, first, said.append)
        for step in range(first, first + 3):
            writers.scalars({"train/x": float(step), "train/nan": float("nan")}, step)
        writers.text("warning", "something is odd", first)
        writers.audio("sample_0/original", np.zeros((800, 2), np.float32), first, 8000)
        writers.image("sample_0/spectrograms", picture.png(*np.zeros((2, 800, 2)), 8000), first)
        if finished:
            writers.model(tmp_path / "model")
        writers.close(finished)
    assert said == []
    ((uri, run_id),) = json.loads((workdir / "mlflow.json").read_text()).items()
    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert [metric.step for metric in client.get_metric_history(run_id, "train/x")] == list(range(6))
    assert run.data.params["model.base_channels"] == "4"
    assert run.data.tags["changed.data.num_threads"] == "2"
    assert run.data.tags["warning.step_00000000"] == "something is odd"

    def artifacts(path=""):
        for found in client.list_artifacts(run_id, path):
            yield from artifacts(found.path) if found.is_dir else [found.path]

    held = set(artifacts())
    for step in (0, 3):
        assert f"samples/step_{step:08d}/sample_0_original.wav" in held
        assert f"samples/step_{step:08d}/sample_0_spectrograms.png" in held
    assert "best_model/model.json" in held
    fetched = client.download_artifacts(run_id, "best_model", str(tmp_path))
    assert load_model(fetched)[0] == model


@pytest.mark.slow
def test_wandb_keeps_a_run_offline_under_one_id(micro_config, trained_run, tmp_path):
    pytest.importorskip("wandb")
    micro_config.logging.writers = ("wandb",)
    said = []
    for first in (0, 3):
        writers = recorder.open_writers(micro_config, tmp_path, first, said.append)
        writers.scalars({"train/x": float(first)}, first)
        writers.text("warning", "something is odd", first)
        writers.audio("sample_0/original", np.zeros((800, 2), np.float32), first, 8000)
        writers.image("sample_0/spectrograms", picture.png(*np.zeros((2, 800, 2)), 8000), first)
        if first:
            model, variables = load_model(trained_run[0])
            save_model(model, variables, tmp_path / "model")
            writers.model(tmp_path / "model")
        writers.close(True)
    assert said == []
    run_id = json.loads((tmp_path / "wandb.json").read_text())["id"]
    sessions = sorted((tmp_path / "wandb").glob(f"offline-run-*-{run_id}"))
    assert len(sessions) == 2
    for session in sessions:
        assert (session / f"run-{run_id}.wandb").stat().st_size > 1000
        assert list(session.rglob("*.wav"))
        assert list(session.rglob("*.png"))
