import json
import math
import os

import pytest

from audiovae_jax.run.tracking import json_lines
from audiovae_jax.run.tracking.json_lines import JsonLines


def _steps(workdir):
    return [record["step"] for record in json_lines.read(workdir / json_lines.NAME)]


def test_a_resumed_run_has_each_step_once(tmp_path):
    for first, last in ((0, 6), (4, 8)):  # killed after step 6, resumed from the checkpoint of step 3
        lines = JsonLines(tmp_path, first, pytest.fail)
        for step in range(first, last):
            lines.scalars({"x": first}, step)
        lines.close(True)
    assert _steps(tmp_path) == list(range(8))
    values = [record["scalars"]["x"] for record in json_lines.read(tmp_path / json_lines.NAME)]
    assert values == [0, 0, 0, 0, 4, 4, 4, 4]


def test_an_incomplete_line_of_a_killed_run_is_removed(tmp_path):
    lines = JsonLines(tmp_path, 0, pytest.fail)
    lines.scalars({"x": 1.0}, 0)
    lines.text("warning", "a word", 1)
    lines.close(True)
    path = tmp_path / json_lines.NAME
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:-cut])
        assert _steps(tmp_path) in ([], [0], [0, 1])
        again = JsonLines(tmp_path, 2, pytest.fail)
        again.scalars({"x": 2.0}, 2)
        again.close(True)
        for line in path.read_bytes().splitlines():
            json.loads(line)
        assert _steps(tmp_path)[-1] == 2


def test_a_step_back_in_a_session(tmp_path):
    lines = JsonLines(tmp_path, 0, pytest.fail)
    for step in range(5):
        lines.scalars({"x": 0.0}, step)
    lines.restart(3)
    lines.scalars({"x": 9.0}, 3)
    lines.close(True)
    assert _steps(tmp_path) == [0, 1, 2, 3]


def test_numbers_that_are_none_are_words(tmp_path):
    lines = JsonLines(tmp_path, 0, pytest.fail)
    lines.scalars({"a": math.nan, "b": math.inf, "c": -math.inf}, 0)
    lines.close(True)
    (line,) = (tmp_path / json_lines.NAME).read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["scalars"] == {"a": "nan", "b": "inf", "c": "-inf"}


def test_a_full_disk_is_reported_once_and_retried(tmp_path, full_disk, monkeypatch):
    said = []
    monkeypatch.setattr(json_lines, "_AGAIN_AFTER", 0.0)
    lines = JsonLines(tmp_path, 0, said.append)
    with full_disk(2_000):
        for step in range(100):
            lines.scalars({"x": 1.0}, step)
    assert len(said) == 1
    assert "writing metrics.jsonl failed, and is retried later" in said[0]
    lines.scalars({"x": 1.0}, 100)
    lines.close(True)
    assert said[1:] == ["metrics.jsonl is written again"]
    steps = _steps(tmp_path)
    assert steps[-1] == 100
    assert steps[:-1] == list(range(len(steps) - 1))
    assert os.path.getsize(tmp_path / json_lines.NAME) < 4_000
