import json
import re

import numpy as np
import pytest
import soundfile

from audiovae_jax.data.sets import manifest, probing
from audiovae_jax.errors import DataError

OPTIONS = probing.Options(channels=2, num_threads=2)


@pytest.fixture
def audio(tmp_path):
    """Two files of a second whose samples count up, so that a part tells where it is from."""
    for name in ("a.wav", "deeper/b.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, np.arange(1000)[:, None] / 1000, 1000, subtype="FLOAT")
    return tmp_path


def _jsonl(folder, *entries):
    path = folder / "list.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return str(path)


def test_a_line_may_choose_a_part_a_weight_and_a_side(audio):
    root = _jsonl(
        audio,
        {"path": "a.wav", "start": 0.25, "duration": 0.5, "weight": 3},
        {"path": str(audio / "deeper" / "b.wav"), "split": "valid"},
        {"path": "deeper/b.wav", "split": "test"},
    )
    found = manifest.scan(root, OPTIONS, 0.1)
    (train,), (validation,) = found.train, found.validation
    assert (train.weight, train.audio.frames, train.seconds) == (3.0, 500, 0.5)
    np.testing.assert_allclose(train.audio.read(10, 2)[:, 0], [0.26, 0.261], atol=1e-6)
    assert validation.audio.frames == 1000


def test_a_csv_says_the_same(audio):
    (audio / "list.csv").write_text("path,start,duration,weight,split\na.wav,0.25,0.5,3,train\ndeeper/b.wav,,,,valid\n")
    lines = _jsonl(
        audio,
        {"path": "a.wav", "start": 0.25, "duration": 0.5, "weight": 3, "split": "train"},
        {"path": "deeper/b.wav", "split": "valid"},
    )
    of_csv = manifest.scan(str(audio / "list.csv"), OPTIONS, 0.1)
    of_lines = manifest.scan(lines, OPTIONS, 0.1)
    assert (of_csv.train, of_csv.validation) == (of_lines.train, of_lines.validation)
    assert of_csv.fingerprint == of_lines.fingerprint


def test_without_splits_the_paths_decide(audio):
    found = manifest.scan(_jsonl(audio, {"path": "a.wav"}, {"path": "deeper/b.wav"}), OPTIONS, 0.1)
    assert len(found.train) == len(found.validation) == 1
    assert found.train != found.validation


def test_what_cannot_be_used_is_skipped_with_its_reason(audio):
    (audio / "bad.wav").write_text("not audio")
    root = _jsonl(
        audio,
        {"path": "a.wav"},
        {"path": "deeper/b.wav"},
        {"path": "bad.wav"},
        {"path": "gone.wav"},
        {"path": "a.wav", "start": 7},
    )
    reasons = [reason for _, reason in manifest.scan(root, OPTIONS, 0.1).skipped]
    assert len(reasons) == 3
    assert "not audio" in reasons[0]
    assert "No such file" in reasons[1]
    assert reasons[2] == "its 1.000 s end before start=7"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not JSON"),
        ('{"file": "a.wav"}', "entry 1 has no path"),
        ("[1]", "entry 1 has no path"),
        ('{"path": "a.wav", "start": "soon"}', "start 'soon' is not a number"),
        ('{"path": "a.wav", "start": -1}', "start -1 must be 0 or more"),
        ('{"path": "a.wav", "duration": 0}', "duration 0 must be above 0"),
        ('{"path": "a.wav", "weight": 1e999}', "weight inf must be above 0"),
        ('{"path": "a.wav", "split": "training"}', "split 'training' must be one of train"),
        ('{"path": "a.wav", "split": "train"}', "no usable line has split 'validation'"),
        ("", "lists no audio"),
        ('{"path": "a.wav", "split": ["train"]}', "split ['train'] must be one of train"),
        ('{"path": "a\\u0000.wav"}', "is not a path"),
        ('{"path": "a.wav", "start": 1e306}', "start 1e+306 must be"),
        ('{"path": "a.wav", "start": ' + "9" * 400 + "}", "is not a number"),
        ('{"path": "a.wav", "Split": "train"}', "has 'Split'; did you mean 'split'?"),
    ],
)
def test_a_wrong_line_is_named(audio, line, message):
    (audio / "list.jsonl").write_text(line)
    with pytest.raises(DataError, match=re.escape(message)):
        manifest.scan(str(audio / "list.jsonl"), OPTIONS, 0.1)


@pytest.mark.parametrize(
    "text",
    [
        "path, Split\na.wav,train\ndeeper/b.wav,valid\n",
        "\ufeffpath,split\na.wav,train\ndeeper/b.wav,valid\n",
        "PATH;split\na.wav;train\ndeeper/b.wav;valid\n",
    ],
)
def test_a_csv_is_taken_as_spreadsheets_write_it(audio, text):
    (audio / "list.csv").write_text(text, encoding="utf-8")
    found = manifest.scan(str(audio / "list.csv"), OPTIONS, 0.1)
    assert [track.key for track in (*found.train, *found.validation)] == ["a.wav", "deeper/b.wav"]


def test_what_is_no_csv_is_named(audio):
    (audio / "list.csv").write_text("file,split\na.wav,train\n")
    with pytest.raises(DataError, match="its first line has no column path, only file, split"):
        manifest.scan(str(audio / "list.csv"), OPTIONS, 0.1)
    (audio / "list.csv").write_text('path,split\n"' + "a" * 200_000)
    with pytest.raises(DataError, match=r"list.csv: line \d+ is not CSV"):
        manifest.scan(str(audio / "list.csv"), OPTIONS, 0.1)


def test_what_is_listed_twice_keeps_both_weights(audio):
    lines = [{"path": "a.wav", "weight": weight, "split": "train"} for weight in (1, 3)]
    found = manifest.scan(_jsonl(audio, *lines, {"path": "deeper/b.wav", "split": "valid"}), OPTIONS, 0.1)
    assert [(track.key, track.weight) for track in found.train] == [("a.wav", 1.0), ("a.wav#2", 3.0)]
