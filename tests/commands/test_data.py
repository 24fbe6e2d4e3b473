"""The command `check_data`."""

import json

import command_line
import numpy as np
import pytest
import soundfile


@pytest.mark.slow
def test_a_report_is_made_and_the_status_is_training_s(audio_folder, tmp_path):
    (audio_folder / "bad.wav").write_bytes(b"nonsense")

    config = ("--config=tiny", "--config.data.max_bad_share=0.2", "--config.data.index=False")
    report = ("--json=report.json", "--page=report.html", "--seconds=0.1")
    done = command_line.run("check_data", "audio", *config, *report, cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
    assert "files under audio: 3 tracks" in done.stdout
    assert "crops of 0.19 s a second with 2 threads" in done.stdout  # 8192 samples, as tiny has it
    assert "error: training would fail: 1 of 4 files cannot be used" in done.stderr
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["skipped"][0]["examples"] == ["audio/bad.wav"]
    assert found["train"]["tracks"] + found["validation"]["tracks"] == 3
    assert len(found["measured"]) == 3
    assert "training would fail" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_a_file_that_turns_out_to_be_bad_is_a_warning_of_one_line(tmp_path):
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (44100, 2)).astype(np.float32)
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "good.wav", audio, 44100, subtype="FLOAT")
    audio[5000:20000] = np.nan  # not at the beginning, middle or end, which are probed
    soundfile.write(tmp_path / "audio" / "bad.wav", audio, 44100, subtype="FLOAT")
    (tmp_path / "list.jsonl").write_text(
        '{"path": "audio/bad.wav", "split": "train"}\n{"path": "audio/good.wav", "split": "validation"}\n'
    )
    config = ("--config=tiny", "--config.data.max_bad_share=1.0", "--config.data.index=False", "--seconds=0.1")
    done = command_line.run("check_data", "list.jsonl", *config, cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert "warning: another crop is used instead of audio/bad.wav: contains NaN or infinite samples\n" in done.stderr
