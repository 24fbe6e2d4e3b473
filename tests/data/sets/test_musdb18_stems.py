"""Conversion of MUSDB18, of songs that ffmpeg makes here."""

import os
import shutil
import subprocess

import numpy as np
import pytest
import soundfile

from audiovae_jax.data.sets import musdb18, musdb18_stems, probing
from audiovae_jax.errors import DataError

RATE = 44100
# Louder from stream to stream, so that each is told from the others.
LEVELS = dict(zip(musdb18_stems.PARTS, (0.05, 0.1, 0.2, 0.4, 0.8), strict=True))
ODD = "-i $(touch hacked); 100% 'q': v1"

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="makes and converts songs with ffmpeg")


def _make_song(path, streams=5, options=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = f"sine=440:d=1:r={RATE},volume=8,pan=stereo|c0=c0|c1=c0"
    command = ["ffmpeg", "-loglevel", "error", "-nostdin", "-f", "lavfi", "-i", tone]
    for i, level in zip(range(streams), LEVELS.values(), strict=False):
        command += ["-map", "0:a", f"-filter:a:{i}", f"volume={level}"]
    subprocess.run([*command, "-c:a", "aac", *options, "-f", "mp4", f"file:{path}"], check=True)


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    path = tmp_path_factory.mktemp("song") / "song.stem.mp4"
    _make_song(path, options=("-movflags", "+faststart"))
    return path


@pytest.fixture
def root(tmp_path, song):
    """Two songs to train on, one of them the first official validation song, and one to test on."""
    for name in (f"train/{ODD}.2", f"train/{musdb18.VALIDATION_SONGS[0]}", "test/a"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(song, tmp_path / "in" / f"{name}.stem.mp4")
    (tmp_path / "in" / "train" / "._a.stem.mp4").write_bytes(b"left by macOS")
    return tmp_path / "in"


def _convert(root, out, **options):
    said = []
    try:
        musdb18_stems.convert(root, out, num_workers=2, say=said.append, **options)
    except DataError as error:
        said.append(f"error: {error}")
    return "\n".join(said)


@needs_ffmpeg
def test_songs_in_the_layout_of_hq(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(root / "test" / "a.stem.mp4", root / "train" / f"{ODD}.3.stem.mp4")
    shutil.copy(root / "test" / "a.stem.mp4", os.fsencode(root / "train") + b"/\xff.stem.mp4")
    assert _convert(root, tmp_path / "out") == "5 made, 0 skipped (already there), 0 failed"
    assert musdb18.recognise(str(tmp_path / "out"), probing.Options(channels=2)) == "wav"
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
    names = {f"{ODD}.2", f"{ODD}.3", os.fsdecode(b"\xff"), musdb18.VALIDATION_SONGS[0]}
    assert set(os.listdir(tmp_path / "out" / "train")) == names
    for name in (f"train/{ODD}.2", "test/a"):
        assert len(list((tmp_path / "out" / name).iterdir())) == 5
        for part, level in LEVELS.items():
            audio, rate = soundfile.read(tmp_path / "out" / name / f"{part}.wav")
            assert (rate, audio.shape[1]) == (RATE, 2)
            assert RATE <= len(audio) < RATE + 3 * 1024
            np.testing.assert_allclose(np.abs(audio[5000:-5000]).max(), level, rtol=0.1)
    made = (tmp_path / "out" / "test" / "a").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "out" / "train" / f"{ODD}.2")
    assert _convert(root, tmp_path / "out") == "1 made, 4 skipped (already there), 0 failed"
    assert (tmp_path / "out" / "test" / "a").stat().st_mtime_ns == made


@needs_ffmpeg
def test_what_is_no_song_is_named_and_not_in_the_way(root, song, tmp_path):
    content = song.read_bytes()
    (root / "train" / "text.stem.mp4").write_text("#EXTM3U\n/etc/hostname\n")
    (root / "train" / "short.stem.mp4").write_bytes(content[: len(content) * 2 // 3])
    middle = len(content) // 2
    noise = np.random.default_rng(0).bytes(4000)
    (root / "train" / "noise.stem.mp4").write_bytes(content[:middle] + noise + content[middle + 4000 :])
    _make_song(root / "train" / "two.stem.mp4", streams=2)
    (tmp_path / "out" / "test" / "a").mkdir(parents=True)
    said = _convert(root, tmp_path / "out")
    for name, reason in (
        ("train/text", "is damaged, or not an MP4"),
        ("train/short", "is damaged"),
        ("train/noise", "is damaged"),
        ("train/two", "has 2 audio streams, and a song of MUSDB18 has 5: mixture, drums"),
        ("test/a", "exists without the five files"),
    ):
        assert any(f"{name}.stem.mp4: " in line and reason in line for line in said.split("\n")), (name, said)
    assert "2 made, 0 skipped (already there), 5 failed" in said
    assert "error: 5 of 7 songs failed" in said
    assert len(os.listdir(tmp_path / "out" / "train")) == 2  # and nothing half done


@needs_ffmpeg
def test_a_full_disk_ends_it_and_leaves_nothing_half(root, tmp_path, monkeypatch):
    def full(*args, **options):
        return subprocess.CompletedProcess(args, 1, stderr=b"x.wav: No space left on device\n")

    duration = musdb18_stems._duration
    monkeypatch.setattr(musdb18_stems, "_duration", lambda *args: 1.0)
    monkeypatch.setattr(subprocess, "run", full)
    said = _convert(root, tmp_path / "out")
    assert "error: " in said
    assert "no room for" in said
    assert not list((tmp_path / "out").rglob("*.wav"))
    assert not [name for name in os.listdir(tmp_path / "out" / "train") if name.endswith(".tmp")]
    monkeypatch.undo()
    assert musdb18_stems._duration is duration
    assert _convert(root, tmp_path / "out") == "3 made, 0 skipped (already there), 0 failed"


def test_without_ffmpeg_it_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.stem.mp4").write_bytes(b"")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no ffmpeg on PATH: install it with `apt install ffmpeg`" in _convert(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_songs_is_refused(tmp_path):
    assert "is not MUSDB18: there is no train/SONG.stem.mp4 or test/SONG.stem.mp4" in _convert(tmp_path, tmp_path / "o")
