import base64
import json
import re

import numpy as np
import pytest
import soundfile

from audiovae_jax.errors import DataError
from audiovae_jax.run.tracking import history, json_lines, page, sessions
from configs import base


def _run(workdir, rate=1e-3, steps=40):
    workdir.mkdir()
    lines = json_lines.JsonLines(workdir, 0, pytest.fail)
    for step in range(1, steps + 1):
        numbers = {"train/total_g_loss": 100.0 / step, "val/total_loss": abs(step - 20) + 1.0}
        lines.scalars(numbers | {"train/skipped_updates": 0.0, "train/rate_of_<b>": rate}, step)
    lines.text("warning", "<b>the discriminator</b> is saturated", 30)
    lines.close(True)
    config = base.get_config().to_dict()
    config["optimizer"]["learning_rate"] = rate
    config["data"]["root"] = "<script>alert(1)</script>"
    config["losses"]["mel"]["_target_"] = "my_parts.loss"
    (workdir / "config.json").write_text(json.dumps(config))
    for step in (0, 10, 20, 30, 40):
        folder = workdir / "samples" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        for name in ("0_original", "0_reconstruction"):
            soundfile.write(folder / f"{name}.wav", np.zeros((100, 2)), 8000)
    return workdir


def test_several_runs_on_one_page(tmp_path):
    runs = [history.read(_run(tmp_path / name, rate)) for name, rate in (("first", 1e-3), ("second", 2e-3))]
    page.write(runs, base.get_config().to_dict(), tmp_path / "report.html", sample_steps=3)
    text = (tmp_path / "report.html").read_text()
    assert text.count("<audio") == 2 * (1 + 3)
    assert "step 20" in text
    assert "step 10" not in re.findall("<th>.*?</th>", text)
    assert len(re.findall('<path d="[^"]*" style="fill: none; stroke: var[(]--series', text)) == 2 * 2
    assert "val/total_loss is 21 at step 40; it was 1 at step 20" in text
    assert "&lt;b&gt;the discriminator&lt;/b&gt; is saturated" in text
    assert "<b>0.001</b>" in text
    assert "<b>0.002</b>" in text
    assert "&quot;my_<wbr>parts.<wbr>loss&quot;" in text
    assert "<script>alert" not in text
    # The page makes no requests.
    assert not re.search(r"(src|href)=\"(?!data:)|https?://|@import|url\(", text)


def test_the_time_of_a_run_is_shown_by_session(tmp_path):
    runs = [history.read(_run(tmp_path / name)) for name in ("first", "second")]
    page.write(runs, base.get_config().to_dict(), tmp_path / "old.html", sample_steps=1)
    assert "Where the time went" not in (tmp_path / "old.html").read_text()
    spent = dict.fromkeys(sessions.MEASURED, 0.0)
    killed = {
        "started": 1000.0, "first_step": 0, "last_step": 30, "steps": 30, "repeated_steps": 0,
        "seconds": spent | {"steps": 30.0, "compiling": 7.5},
    }  # fmt: skip
    resumed = {**killed, "started": 1100.0, "first_step": 20, "last_step": 40, "steps": 20}
    resumed["seconds"] = spent | {"steps": 20.0, "restoring": 2.5}
    content = json.dumps({"sessions": [killed, resumed]})
    (tmp_path / "second" / sessions.NAME).write_text(content)
    runs[1] = history.read(tmp_path / "second")
    page.write(runs, base.get_config().to_dict(), tmp_path / "report.html", sample_steps=1)
    text = (tmp_path / "report.html").read_text()
    time = text[text.index("Where the time went") : text.index("Curves over steps")]
    rows = [row for row in _rows(time) if row]
    assert [re.sub("<.*?>", "", row[0]) for row in rows] == ["second", "steps 0 to 30", "steps 20 to 40"]
    assert [row[1:5] for row in rows] == [
        ["67%", "1.0 min", "40.0 s", "7.5 s"], ["53%", "37.5 s", "20.0 s", "7.5 s"], ["89%", "22.5 s", "20.0 s", ""],
    ]  # fmt: skip
    assert [row[-2:] for row in rows] == [["10.0 s", "1.0 min"], ["10.0 s", ""], ["", ""]]


def _rows(text):
    """Return the cells of every row of every table."""
    return [re.findall("<td[^>]*>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", text)]


def test_the_same_sample_of_two_runs_is_shown_side_by_side(tmp_path):
    runs = [history.read(_run(tmp_path / name)) for name in ("first", "second")]
    for run, sample in zip(runs, (b"first", b"second"), strict=True):
        for step, folder in run.samples.items():
            for name in ("original", "reconstruction"):
                (folder / f"1_{name}.wav").write_bytes(b"%s %s %d" % (sample, name.encode(), step))
    del runs[1].samples[20]
    page.write(runs, base.get_config().to_dict(), tmp_path / "report.html", sample_steps=3)
    text = (tmp_path / "report.html").read_text()
    sample = text[text.index("Sample 1</h3>") : text.index("<h2>Config")]
    heard = {
        row[0]: [base64.b64decode(content).decode() for content in re.findall('base64,([^"]*)', "".join(row[1:]))]
        for row in _rows(sample)
        if row
    }
    assert heard["original"] == ["first original 40", "second original 40"]
    assert heard["step 0"] == ["first reconstruction 0", "second reconstruction 0"]
    assert heard["step 20"] == ["first reconstruction 20"]
    assert heard["step 40"] == ["first reconstruction 40", "second reconstruction 40"]


def test_constant_metrics_are_collapsed_numbers_instead_of_curves(tmp_path):
    runs = [history.read(_run(tmp_path / name, rate)) for name, rate in (("first", 1e-3), ("second", 2e-3))]
    page.write(runs, base.get_config().to_dict(), tmp_path / "report.html", sample_steps=1)
    text = (tmp_path / "report.html").read_text()
    assert len(re.findall("<figcaption>[a-z]+/", text)) == 2
    (folded,) = re.findall("<details><summary>Numbers that never changed.*?</details>", text)
    rows = [[cell.replace("<wbr>", "") for cell in row] for row in _rows(folded) if row]
    assert rows == [["train/rate_of_&lt;b&gt;", "0.001", "0.002"], ["train/skipped_updates", "0", "0"]]


def test_a_run_that_is_on_and_files_that_are_damaged(tmp_path):
    workdir = _run(tmp_path / "run")
    with (workdir / json_lines.NAME).open("ab") as file:
        file.write(b'{"step": 41, "scalars": {"train/total_g_l')
    (workdir / "config.json").write_text("{")
    (workdir / "samples" / "step_00000040" / "0_reconstruction.wav").unlink()
    run = history.read(workdir)
    assert run.last_step == 40
    page.write([run], base.get_config().to_dict(), tmp_path / "report.html", sample_steps=9)
    assert "not there: No such file" in (tmp_path / "report.html").read_text()


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        history.read(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no record of a run"):
        history.read(tmp_path)
