"""Counting and decoding MPEG frames: lengths that headers do not state, and windows equal to slices of the whole."""

import io
import struct

import numpy as np
import pytest
import soundfile

from audiovae_jax.data.audio import audio_file
from audiovae_jax.data.formats import mp3
from audiovae_jax.errors import DataError

SECONDS = 3


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def _music(rate, channels, rng):
    """Tones, noise and silence, so that frames of a variable rate differ in size."""
    t = np.arange(SECONDS * rate) / rate
    tones = 0.3 * np.sin(2 * np.pi * np.outer(t, [440, 660])) * (t < 2)[:, None]
    noise = 0.2 * rng.standard_normal((len(t), 2)) * (np.sin(9 * t) > 0)[:, None]
    return (tones + noise)[:, :channels].astype(np.float32)


def _encoded(rng, mode="VARIABLE", rate=44100, channels=2, level=0.5):
    """An MP3 file's bytes."""
    file = io.BytesIO()
    options = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": mode, "compression_level": level}
    soundfile.write(file, _music(rate, channels, rng), rate, **options)
    return file.getvalue()


def _whole(data):
    """The samples of a healthy file as libsndfile reads it at once."""
    return soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)[0]


def _first_frame(data):
    """The size of the frame with the Xing header."""
    (part,) = mp3.scan(io.BytesIO(data)).parts
    return part.offsets[0]


def _probed(tmp_path, data, **options):
    path = tmp_path / "a.mp3"
    path.write_bytes(data)
    return audio_file.probe(path, **options)


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize(("rate", "channels", "level"), [(44100, 2, 0.5), (22050, 1, 0.9), (48000, 1, 0.1)])
def test_windows_equal_the_whole_file(tmp_path, rng, mode, rate, channels, level):
    data = _encoded(rng, mode, rate, channels, level)
    file, whole = _probed(tmp_path, data), _whole(data)
    assert (file.frames, file.sample_rate, file.channels) == (len(whole), rate, channels)
    for _ in range(20):
        count = int(rng.integers(1, rate))
        start = int(rng.integers(0, file.frames - count))
        np.testing.assert_allclose(file.read(start, count), whole[start : start + count], atol=1e-6)
    blocks = np.concatenate(list(audio_file.read_blocks(file, 10_000)))
    np.testing.assert_allclose(blocks, whole, atol=1e-6)


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize(
    "tags", [(b"", b""), (b"ID3\x03\0\0\0\0\x40\0" + bytes(8192), b"TAG" + bytes(125)), (b"\0" * 5000, b"")]
)
def test_without_a_xing_header_every_frame_counts(tmp_path, rng, mode, tags):
    data = _encoded(rng, mode)
    (part,) = mp3.scan(io.BytesIO(data)).parts
    file = _probed(tmp_path, tags[0] + data[_first_frame(data) :] + tags[1])
    assert file.frames == part.frames * 1152  # with the encoder's delay, which only the header states
    whole = file.read(0, file.frames)
    np.testing.assert_allclose(whole[part.skip : part.skip + part.length], _whole(data), atol=1e-6)


@pytest.mark.parametrize("factor", [0, 0.5, 2])
def test_a_wrong_count_in_the_header_is_not_believed(tmp_path, rng, factor):
    data = bytearray(_encoded(rng))
    at = data.index(b"Xing") + 8
    (count,) = struct.unpack(">I", data[at : at + 4])
    data[at : at + 4] = struct.pack(">I", int(count * factor))
    assert _probed(tmp_path, bytes(data)).frames == SECONDS * 44100


def test_joined_files_are_read_one_after_the_other(tmp_path, rng):
    data = [_encoded(rng), _encoded(rng, "CONSTANT")]
    file = _probed(tmp_path, b"".join(data))
    whole = np.concatenate([_whole(one) for one in data])
    assert file.frames == len(whole) == 2 * SECONDS * 44100
    np.testing.assert_allclose(file.read(100_000, 100_000), whole[100_000:200_000], atol=1e-6)


def test_joined_files_of_other_rates_are_refused(tmp_path, rng):
    with pytest.raises(DataError, match=r"its part from 3.0 s on has 22050 Hz and 1 channels"):
        _probed(tmp_path, _encoded(rng) + _encoded(rng, rate=22050, channels=1))


def test_damage_is_named_by_its_second_and_what_is_there_can_be_read(tmp_path, rng):
    data = _encoded(rng, "CONSTANT")
    cut = data[: len(data) // 2]
    with pytest.raises(DataError, match=r"truncated: audio ends at 1\.\d s of 3\.0 s"):
        _probed(tmp_path, cut)
    file = _probed(tmp_path, cut, allow_truncated=True)
    assert 1.4 < file.seconds < 1.6
    np.testing.assert_allclose(file.read(0, file.frames - 1152), _whole(data)[: file.frames - 1152], atol=1e-6)
    middle = len(data) // 2
    hole = data[:middle] + bytes(3000) + data[middle + 3000 :]
    with pytest.raises(DataError, match=r"damaged: 3\d\d\d bytes at 1\.\d s are not MPEG audio"):
        _probed(tmp_path, hole)


def test_a_tail_that_looks_like_frames_is_damage_that_can_be_left_out(tmp_path, rng):
    data = _encoded(rng)
    content = data + b"\xff" * 300_000 + data
    with pytest.raises(DataError, match=r"damaged: \d+ bytes at 3\.\d s are not MPEG audio"):
        _probed(tmp_path, content)
    assert _probed(tmp_path, content, allow_truncated=True).frames == SECONDS * 44100


def test_windows_are_exact_where_streams_were_joined_in_the_middle(tmp_path):
    rng = np.random.default_rng(5)
    data = _encoded(rng, "VARIABLE", 16000, 1, 0.1)
    (part,) = mp3.scan(io.BytesIO(data)).parts
    file = _probed(tmp_path, data[_first_frame(data) :] + data[part.offsets[1] :])
    whole = file.read(0, file.frames)
    for start in range(0, file.frames - 576, 288):
        np.testing.assert_allclose(file.read(start, 576), whole[start : start + 576], atol=1e-6)


def test_nothing_is_written_to_stderr(tmp_path, rng, capfd):
    data = _encoded(rng, rate=22050, channels=1, level=0.9)
    for content in (
        data,
        data + data,
        data[_first_frame(data) + 2000 :],
        b"ID3\x03\0\0\0\0\x40\0" + bytes(8192) + data,
    ):
        file = _probed(tmp_path, content)
        for start in range(0, file.frames - 1000, 9999):
            file.read(start, 1000)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "data", [b"\xff\xfb\x90", b"\xff" * 300_000, b"\xff\xfb\x90\0" * 50_000, b"ID3\x04\0\0\x7f\x7f\x7f\x7f"]
)
def test_bytes_that_only_look_like_frames_are_refused(tmp_path, data):
    with pytest.raises(DataError):
        _probed(tmp_path, data)


def test_the_index_of_a_data_set_spares_the_scan(tmp_path, rng, monkeypatch):
    path = tmp_path / "a.mp3"
    path.write_bytes(_encoded(rng))
    fields = audio_file.probe(path).to_json()
    monkeypatch.setattr(mp3, "scan", None)
    assert audio_file.AudioFile.from_json(path, fields).read(5000, 100).shape == (100, 2)
