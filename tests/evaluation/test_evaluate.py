import csv
import json
import re
import weakref
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiovae_jax.data.audio import audio_file, stream
from audiovae_jax.data.sets.catalog import Track
from audiovae_jax.errors import DataError
from audiovae_jax.evaluation import evaluate, report
from audiovae_jax.evaluation.presets import PRESETS
from audiovae_jax.evaluation.systems import Made

RATE = 16000


class Gain:
    """A system with known metrics: it lowers the level."""

    def __init__(self, name, gain):
        self.name, self.gain, self.description = name, gain, f"times {gain} <b>"

    def reconstruct(self, source, target, progress):
        blocks = (np.float32(self.gain) * block for block in source.blocks())
        stream.write_file(target, blocks, source.sample_rate, source.channels, source.length)
        return Made(0.5, {"bits_per_second": 1000.0}, {"std": [self.gain]})


class Picky(Gain):
    """A system that rejects mono."""

    def reconstruct(self, source, target, progress):
        if source.channels == 1:
            raise DataError("mono is not for it")
        return super().reconstruct(source, target, progress)


def _pieces(audio, sample_rate):
    return audio[: len(audio) // 64 * 64, 0].reshape(-1, 64)


@pytest.fixture
def tracks(tmp_path):
    rng = np.random.default_rng(0)
    found = []
    for name, channels, seconds in (("a.wav", 2, 1.5), ("<b>.wav", 2, 1.0), ("mono.wav", 1, 1.0), ("c.wav", 2, 0.02)):
        audio = 0.2 * rng.standard_normal((int(seconds * RATE), channels))
        soundfile.write(tmp_path / name, audio, RATE)
        found.append(Track(name, audio_file.probe(tmp_path / name)))
    return found


def test_every_track_through_every_system(tracks, tmp_path):
    out = tmp_path / "out"
    given = [Gain("half", 0.5), Picky("nine tenths", 0.9)]
    result = evaluate.evaluate(given, tracks, out, title="a <test>", embedding=_pieces, notes=["take note"])
    rows = [json.loads(line) for line in (out / "files.jsonl").read_text().splitlines()]
    assert [(row["file"], row["system"]) for row in rows] == [
        ("a.wav", "half"), ("a.wav", "nine tenths"), ("<b>.wav", "half"), ("<b>.wav", "nine tenths"),
        ("mono.wav", "half"), ("c.wav", "half"), ("c.wav", "nine tenths"),
    ]  # fmt: skip
    assert result["skipped"] == [["mono.wav", "nine tenths: mono is not for it"]]
    first, second = rows[0], rows[1]
    assert first["snr_db"] == pytest.approx(20 * np.log10(2), abs=1e-4)
    assert second["snr_db"] == pytest.approx(20, abs=1e-3)
    assert first["loudness_difference_lu"] == pytest.approx(-20 * np.log10(2), abs=1e-3)
    assert first["true_peak_difference_db"] == pytest.approx(-20 * np.log10(2), abs=1e-3)
    assert first["bandwidth_kept"] == 1
    assert first["realtime_factor"] == pytest.approx(0.5 / 1.5)
    assert "side_snr_db" not in rows[4]
    assert rows[5]["audiotools_stft"] is None  # 320 samples
    with open(out / "files.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["file"] for row in table] == [row["file"] for row in rows]
    assert float(table[0]["snr_db"]) == first["snr_db"]
    summary = json.loads((out / "summary.json").read_text())
    columns = summary["systems"]["nine tenths"]["columns"]
    assert columns["snr_db"]["less_first"] == pytest.approx(20 - 20 * np.log10(2), abs=1e-3)
    assert summary["systems"]["half"]["latent_channels"] == {"std": [0.5]}
    assert summary["systems"]["half"]["columns"]["fad"]["mean"] > columns["fad"]["mean"] > 0
    page = (out / "report.html").read_text()
    assert "&lt;b&gt;.wav" in page
    assert "<b>.wav" not in page
    assert "take note" in page
    assert sorted(path.name for path in out.iterdir()) == ["files.csv", "files.jsonl", "report.html", "summary.json"]


def test_the_page_asks_for_nothing_and_is_bounded(tracks, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "AUDIO_BYTES", 200_000)
    evaluate.evaluate([Gain("half", 0.5)], tracks[:2], tmp_path / "out", title="t", preset=PRESETS["dac"])
    page = (tmp_path / "out" / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|@import|url\(", page)
    players = re.findall(r'data:audio/flac;base64,([^"]*)', page)
    assert len(players) == 2 * 3
    assert sum(map(len, players)) * 3 / 4 < 200_000 * 1.2
    assert "DAC, 8 kbit/s" in page
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["sample_rate"] == 44100


def test_nothing_to_judge_is_an_error_with_reasons(tracks, tmp_path):
    mono = [track for track in tracks if track.key == "mono.wav"]
    with pytest.raises(DataError, match="no file could be evaluated:\n  mono.wav: picky: mono is not for it"):
        evaluate.evaluate([Picky("picky", 0.9)], mono, tmp_path / "out", title="t")


def test_a_file_that_breaks_off_is_skipped(tracks, tmp_path):
    path = Path(tmp_path / "a.wav")
    path.write_bytes(path.read_bytes()[:20_000])
    result = evaluate.evaluate([Gain("half", 0.5)], [tracks[0], tracks[3]], tmp_path / "out", title="t")
    ((name, reason),) = result["skipped"]
    assert name == "a.wav"
    assert "truncated" in reason


@pytest.mark.slow
def test_the_worst_second_is_where_the_clip_is(tmp_path):
    rng = np.random.default_rng(0)
    audio = (0.1 * rng.standard_normal((RATE * 20, 2))).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", audio, RATE, subtype="FLOAT")

    class Hole(Gain):
        def reconstruct(self, source, target, progress):
            made = audio.copy()
            made[13 * RATE : 14 * RATE] = 0
            stream.write_file(target, [made], RATE, 2, len(made))
            return Made(0.1, {})

    heard = []
    original = report.write

    def write(*args, listening, **options):
        heard.extend(listening)
        original(*args, listening=listening, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", write)
        track = Track("long.wav", audio_file.probe(tmp_path / "long.wav"))
        evaluate.evaluate([Hole("hole", 1)], [track], tmp_path / "out", title="t")
    (entry,) = heard
    assert entry.row["worst_second"] == 13
    assert entry.start == pytest.approx(9.5)
    assert len(entry.original) == 8 * RATE
    np.testing.assert_array_equal(entry.original, audio[int(9.5 * RATE) : int(17.5 * RATE)])
    assert not entry.reconstructions["hole"][int(3.5 * RATE) : int(4.5 * RATE)].any()


def test_a_stretch_of_long_audio_keeps_nothing_of_what_comes_before_it():
    made, most = [], 0

    def blocks():
        nonlocal most
        for i in range(100):
            block = np.full((10, 2), i, np.float32)
            made.append(weakref.ref(block))
            most = max(most, sum(one() is not None for one in made))
            yield block

    stretch = evaluate._stretch(stream.AudioStream(10, 1000, 2, blocks), 905, 20)
    assert stretch[:, 0].tolist() == [90.0] * 5 + [91.0] * 10 + [92.0] * 5
    assert most <= 5
