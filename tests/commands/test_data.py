"""`check_data`, as a user gives it."""

import json

import command_line


def test_a_report_is_made_and_the_status_is_training_s(audio_folder, tmp_path):
    (audio_folder / "bad.wav").write_bytes(b"nonsense")

    config = ("--config=tiny", "--config.data.max_bad_share=0.2", "--config.data.index=False")
    report = ("--json=report.json", "--page=report.html", "--seconds=0.1")
    done = command_line.run("check_data", "audio", *config, *report, cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
    assert "files under audio: 3 tracks" in done.stdout
    assert "crops of 0.19 s a second with 2 threads" in done.stdout  # 8192 samples, as tiny has it
    assert "error: training would refuse: 1 of 4 files cannot be used" in done.stderr
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["skipped"][0]["examples"] == ["audio/bad.wav"]
    assert found["train"]["tracks"] + found["validation"]["tracks"] == 3
    assert len(found["measured"]) == 3
    assert "training would refuse" in (tmp_path / "report.html").read_text()
