"""Audio written from blocks: whole, countable, in the format that its name says."""

import tracemalloc

import numpy as np
import pytest
import soundfile

from audiovae_jax.data.audio import stream
from audiovae_jax.errors import DataError


def _blocks(length, channels=2, size=1000):
    audio = (0.2 * np.random.default_rng(0).standard_normal((length, channels))).astype(np.float32)
    return audio, (audio[i : i + size] for i in range(0, length, size))


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [(".wav", "WAV"), (".FLAC", "FLAC"), (".ogg", "OGG"), (".aiff", "AIFF"), (".mp3", "MP3"), (".opus", "OGG")],
)
def test_the_suffix_names_the_format(tmp_path, suffix, kind):
    if suffix.lower() not in stream.SUFFIXES:
        pytest.skip(f"this libsndfile writes no {suffix}")
    audio, blocks = _blocks(4800)
    stream.write_file(tmp_path / f"a{suffix}", blocks, 48000, 2, 4800)
    with soundfile.SoundFile(tmp_path / f"a{suffix}") as file:
        assert (file.format, file.frames) == (kind, 4800)
    if kind in ("WAV", "AIFF"):
        np.testing.assert_array_equal(soundfile.read(tmp_path / f"a{suffix}", dtype="float32")[0], audio)


def test_a_wav_too_long_for_its_header_becomes_rf64(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "_LARGEST", 8 * 4000)
    for length, kind in ((4000, "WAV"), (4001, "RF64")):
        audio, blocks = _blocks(length)
        stream.write_file(tmp_path / "a.wav", blocks, 44100, 2, length)
        with soundfile.SoundFile(tmp_path / "a.wav") as file:
            assert file.format == kind
            np.testing.assert_array_equal(file.read(dtype="float32"), audio)
    with pytest.raises(DataError, match="4001 samples are more than the 4 GiB of this kind; use .wav or .flac"):
        stream.write_file(tmp_path / "a.aiff", _blocks(4001)[1], 44100, 2, 4001)


class _Sparse:
    """A file in which zeros take no room, since they are skipped."""

    def __init__(self, path):
        self._file, self.size = open(path, "w+b"), 0  # noqa: SIM115, closed by the test

    def write(self, data):
        data = bytes(data)
        if data.count(0) == len(data):
            self._file.seek(len(data), 1)
        else:
            self._file.write(data)
        self.size = max(self.size, self._file.tell())
        return len(data)

    def seek(self, offset, whence=0):
        return self._file.seek(offset, whence) if whence < 2 else self._file.seek(self.size + offset)

    def read(self, size):
        return self._file.read(size)

    def tell(self):
        return self._file.tell()

    def close(self):
        self._file.truncate(self.size)
        self._file.close()


@pytest.mark.slow
def test_a_wav_of_more_than_4_gib_reads_back_to_its_last_sample(tmp_path, monkeypatch):
    length, size = 2**29 + 12345, 1 << 22  # of stereo in float32: 4.3 GB
    last = (0.2 * np.random.default_rng(0).standard_normal((1000, 2))).astype(np.float32)

    def blocks():
        zeros = np.zeros((size, 2), np.float32)
        for start in range(0, length - len(last), size):
            yield zeros[: length - len(last) - start]
        yield last

    real, sparse = stream.sound.open_sound, []

    def open_sound(path, mode="r", **options):
        if mode == "r":
            sparse[0].close()
            return real(path)
        sparse.append(_Sparse(path))
        return soundfile.SoundFile(sparse[0], mode, **options)

    monkeypatch.setattr(stream.sound, "open_sound", open_sound)
    stream.write_file(tmp_path / "long.wav", blocks(), 44100, 2, length)
    assert (tmp_path / "long.wav").stat().st_size > 2**32
    monkeypatch.undo()
    audio = stream.open_file(tmp_path / "long.wav")
    assert audio.length == length
    with soundfile.SoundFile(tmp_path / "long.wav") as file:
        file.seek(length - 1000)
        np.testing.assert_array_equal(file.read(dtype="float32"), last)


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, full_disk):
    for suffix in (".wav", ".flac"):
        with full_disk(100_000), pytest.raises(DataError, match=f"a{suffix} was not written: .*disk"):
            stream.write_file(tmp_path / f"a{suffix}", _blocks(300_000)[1], 44100, 2, 300_000)
    assert list(tmp_path.iterdir()) == []


def test_a_rate_that_vorbis_cannot_have_is_refused(tmp_path):
    with pytest.raises(DataError, match="Vorbis is limited to 192000 Hz, not 300000"):
        stream.write_file(tmp_path / "a.ogg", _blocks(100)[1], 300_000, 2, 100)


def _loud(length=4000, peak=1.6):
    """Two channels with a peak of `peak`, and the share of samples above full scale."""
    audio = peak * np.random.default_rng(0).uniform(-0.9, 0.9, (length, 2)).astype(np.float32)
    audio[7] = peak, -peak / 2
    return audio, (np.abs(audio) > 1).mean()


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".aiff"])
@pytest.mark.parametrize("peak", [None, *stream.PEAKS])
def test_samples_above_full_scale_are_kept_clipped_or_scaled(tmp_path, suffix, peak):
    audio, over = _loud()
    source = stream.of_array(audio, 44100)
    path = tmp_path / f"a{suffix}"
    if (suffix, peak) == (".flac", "keep"):
        with pytest.raises(DataError, match=r"a.flac: .flac does not keep samples above full scale; use .wav"):
            stream.write(source, path, peak=peak)
        assert not list(tmp_path.iterdir())
        return
    level = stream.write(source, path, peak=peak)
    assert (level.peak, level.over) == (np.float32(1.6), pytest.approx(over))
    is_kept = peak in (None, "keep") and suffix != ".flac"
    expected = audio / np.float32(1.6) if peak == "scale" else audio if is_kept else audio.clip(-1, 1)
    read = soundfile.read(path, dtype="float32")[0]
    np.testing.assert_allclose(read, expected, atol=2**-22 if suffix == ".flac" else 0)
    assert list(tmp_path.iterdir()) == [path]


def test_scaling_leaves_what_is_within_full_scale(tmp_path):
    audio, blocks = _blocks(4000)
    level = stream.write_file(tmp_path / "a.wav", blocks, 44100, 2, 4000, peak="scale")
    np.testing.assert_array_equal(soundfile.read(tmp_path / "a.wav", dtype="float32")[0], audio)
    assert level.over == 0


def test_scaling_holds_one_block_in_memory(tmp_path):
    def blocks():
        for i in range(64):
            yield np.full((1 << 14, 2), 2.0 if i == 63 else 0.5, np.float32)

    tracemalloc.start()
    stream.write_file(tmp_path / "a.wav", blocks(), 44100, 2, 64 << 14, peak="scale")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 8 * (8 << 14)  # of 64 blocks
    read = soundfile.read(tmp_path / "a.wav", dtype="float32")[0]
    assert (read[0, 0], read[-1, 0]) == (0.25, 1.0)
