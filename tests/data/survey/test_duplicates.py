"""Recordings that are in a data set more than once, and in both splits."""

import numpy as np
import pytest
import soundfile

from audiovae_jax.data.audio import audio_file, synthesis
from audiovae_jax.data.feeding import pipeline
from audiovae_jax.data.sets import catalog, probing
from audiovae_jax.data.sets.catalog import Excerpt, Track
from audiovae_jax.data.survey import duplicates, survey, text
from audiovae_jax.errors import DataError

RATE = 22050
OPTIONS = probing.Options(channels=1, num_threads=2)


def _noise(seed, seconds=1.0):
    return 0.3 * np.random.default_rng(seed).standard_normal(round(seconds * RATE)).clip(-3, 3)


def _write(path, audio, **options):
    soundfile.write(path, audio, RATE, **options)
    return Track(path.name, audio_file.probe(path, allow_silence=True))


def _catalog(train, validation):
    return catalog.of_sides(train, validation, (), "test")


def _names(group):
    return tuple({name.rpartition("/")[2] for name in side} for side in (group.train, group.validation))


@pytest.fixture
def reads(monkeypatch):
    """Names of the files whose samples are read."""
    names, actual = [], audio_file.AudioFile.read

    def read(file, start, count):
        names.append(file.path.name)
        return actual(file, start, count)

    monkeypatch.setattr(audio_file.AudioFile, "read", read)
    return names


@pytest.mark.parametrize("seconds", [0.5, 4.0])
def test_copies_in_other_lossless_formats_are_a_leak(tmp_path, seconds):
    a = _write(tmp_path / "a.wav", _noise(0, seconds), subtype="PCM_16")
    same = np.int16(soundfile.read(tmp_path / "a.wav", dtype="int16")[0])
    copies = [
        _write(tmp_path / "b.flac", same),
        _write(tmp_path / "c.wav", same / 32768, subtype="FLOAT"),
        _write(tmp_path / "d.aiff", same, subtype="PCM_24"),
    ]
    others = [_write(tmp_path / f"o{i}.wav", _noise(i + 1, seconds)) for i in range(3)]
    found = _catalog([a, *copies[:2], *others[:2]], [copies[2], others[2]])
    assert "1 of 2 validation tracks are exact copies of training tracks" in duplicates.leak(found, OPTIONS)
    assert "d.aiff is " in duplicates.leak(found, OPTIONS)
    (group,), compared = duplicates.find(found, OPTIONS, 100)
    assert _names(group) == ({"a.wav", "b.flac", "c.wav"}, {"d.aiff"})
    assert (group.is_exact, group.is_leak, compared) == (True, True, 7)
    apart = _catalog([a, *copies, *others[:2]], [others[2]])
    assert duplicates.leak(apart, OPTIONS) is None
    ((group,), _) = duplicates.find(apart, OPTIONS, 100)
    assert not group.is_leak


def test_a_difference_in_the_middle_is_no_copy(tmp_path):
    audio = _noise(0, 4.0)
    other = audio.copy()
    other[2 * RATE : 2 * RATE + 2000] = 0
    found = _catalog([_write(tmp_path / "a.wav", audio)], [_write(tmp_path / "b.wav", other)])
    assert duplicates.leak(found, OPTIONS) is None


def test_silence_and_a_track_of_both_splits_are_no_leak(tmp_path):
    silent = [_write(tmp_path / f"{i}.wav", np.zeros(RATE)) for i in range(2)]
    assert duplicates.leak(_catalog(silent[:1], silent[1:]), OPTIONS) is None
    only = _write(tmp_path / "a.wav", _noise(0))
    assert duplicates.leak(_catalog([only], [only]), OPTIONS) is None
    assert duplicates.find(_catalog([only], [only]), OPTIONS, 10) == ((), 1)


def test_a_leak_is_looked_for_in_files_of_one_length_and_once(tmp_path, reads):
    train = [_write(tmp_path / f"t{i}.wav", _noise(i, 1 + i / 10)) for i in range(5)]
    validation = [_write(tmp_path / "v.wav", _noise(9, 1.2)), _write(tmp_path / "w.wav", _noise(9, 3.0))]
    options = probing.Options(channels=1, num_threads=1, index_folder=tmp_path / "index")
    assert duplicates.leak(_catalog(train, validation), options) is None
    assert set(reads) == {"t2.wav", "v.wav"}
    reads.clear()
    assert duplicates.leak(_catalog(train, validation), options) is None
    assert not reads
    _write(tmp_path / "v.wav", _noise(2, 1.2))
    assert "v.wav is " in duplicates.leak(_catalog(train, validation), options)


def test_other_encodings_are_found_and_named_in_the_report(tmp_path, micro_config):
    music = [synthesis.music(np.random.default_rng(i), 8 * RATE, RATE, 1) for i in range(4)]
    tracks = [_write(tmp_path / f"{i}.wav", audio) for i, audio in enumerate(music)]
    lossy = [_write(tmp_path / "0.mp3", music[0]), _write(tmp_path / "1.ogg", music[1])]
    found, _ = duplicates.find(_catalog([*tracks, lossy[1]], [lossy[0]]), OPTIONS, 100)
    assert [_names(group) for group in found] == [({"0.wav"}, {"0.mp3"}), ({"1.wav", "1.ogg"}, set())]
    assert [group.is_exact for group in found] == [False, False]
    lines = [f'{{"path": "{name}", "split": "train"}}\n' for name in ("0.wav", "1.wav", "1.ogg", "2.wav")]
    (tmp_path / "list.jsonl").write_text("".join(lines) + '{"path": "0.mp3", "split": "validation"}\n')
    micro_config.data.root, micro_config.data.index = str(tmp_path / "list.jsonl"), False
    data = pipeline.open_data(micro_config.data, batch_size=2, seed=0)
    made = survey.make(micro_config.data, data, root="list", batch_size=2, limit=10, seconds=0)
    said = "\n".join(text.lines(made))
    assert "recordings found more than once among all tracks: 2, in both splits: 1" in said
    assert "encodings; train: " in said
    (doubt,) = [doubt for doubt in made.doubts if "trained on too" in doubt]
    assert "1 of 1 validation tracks are trained on too" in doubt
    assert "0.mp3 is " in doubt
    assert "0.wav" in doubt


def test_a_limit_leaves_out_training_tracks(tmp_path, reads):
    train = [_write(tmp_path / f"t{i}.wav", _noise(i, 1 + i / 10)) for i in range(8)]
    validation = [_write(tmp_path / "v.wav", _noise(9, 3.0))]
    assert duplicates.find(_catalog(train, validation), OPTIONS, 3) == ((), 3)
    assert set(reads) == {"v.wav", "t0.wav", "t4.wav"}


def test_excerpts_of_one_file_are_told_apart(tmp_path):
    whole = _write(tmp_path / "a.wav", _noise(0, 4.0)).audio
    parts = [Track(f"a@{start}", Excerpt(whole, start, RATE)) for start in (0, RATE, 0)]
    parts[2] = Track("again", parts[2].audio)
    assert duplicates.leak(_catalog(parts[:1], parts[1:2]), OPTIONS) is None
    assert duplicates.leak(_catalog(parts[:1], parts[2:]), OPTIONS) is not None


def test_a_file_that_cannot_be_read_is_passed_over(tmp_path, monkeypatch):
    tracks = [_write(tmp_path / f"{name}.wav", _noise(0)) for name in "ab"]

    def read(*args):
        raise DataError("a.wav: damaged")

    monkeypatch.setattr(audio_file.AudioFile, "read", read)
    assert duplicates.find(_catalog(tracks[:1], tracks[1:]), OPTIONS, 10) == ((), 2)
