"""WAV files whose headers are wrong or unfinished."""

import struct

import numpy as np
import pytest

from audiovae_jax.data.audio import audio_file
from audiovae_jax.errors import DataError

_AUDIO = np.random.default_rng(0).integers(-9000, 9000, (8000, 2)).astype("<i2")
_DATA = _AUDIO.tobytes()
_FORMAT = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 2, 44100, 4 * 44100, 4, 16)
_LIST = b"LIST" + struct.pack("<I", 18) + b"INFOISFT" + struct.pack("<I", 6) + b"maker\0"
_DS64 = b"ds64" + struct.pack("<IQQQI", 28, 0, 0, 0, 0)
_SIZED_DS64 = b"ds64" + struct.pack("<IQQQI", 28, len(_DATA) + 72, len(_DATA), 8000, 0)


def _wav(*chunks, name=b"RIFF", size=0):
    return name + struct.pack("<I", size) + b"WAVE" + b"".join(chunks)


def _data(size):
    return b"data" + struct.pack("<I", size)


def _file(tmp_path, content):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    return audio_file.probe(path)


@pytest.mark.parametrize(
    "content",
    [
        _wav(_FORMAT, _data(0), _DATA),
        _wav(_FORMAT, _data(0), _DATA, size=36 + len(_DATA)),
        _wav(_FORMAT, _data(0), _DATA, size=0xFFFFFFFF),
        _wav(_FORMAT, _data(0xFFFFFFFF), _DATA),
        _wav(_FORMAT, _LIST, _data(0), _DATA, b"\1\2\3"),
        _wav(_DS64, _FORMAT, _data(0xFFFFFFFF), _DATA, name=b"RF64", size=0xFFFFFFFF),
        _wav(_DS64, _FORMAT, _data(0), _DATA, name=b"BW64", size=0xFFFFFFFF),
        _wav(_SIZED_DS64, _FORMAT, _data(0xFFFFFFFF), _DATA, name=b"BW64", size=0xFFFFFFFF),
        _wav(_FORMAT, b"junk" + struct.pack("<I", 5) + b"12345", _data(len(_DATA)), _DATA, size=49 + len(_DATA)),
        _wav(_FORMAT, b"junk" + struct.pack("<I", 5) + b"12345\0", _data(0), _DATA),
        b"ID3\3\0\0\0\0\0\x20" + bytes(32) + _wav(_FORMAT, _data(0), _DATA),
    ],
)
def test_all_samples_are_read(tmp_path, content):
    file = _file(tmp_path, content)
    assert file.frames == len(_AUDIO)
    expected = _AUDIO / np.float32(32768)
    assert np.array_equal(file.read(0, file.frames), expected)
    again = audio_file.AudioFile(file.path, **file.to_json())
    assert np.array_equal(again.read(5001, 700), expected[5001:5701])


@pytest.mark.parametrize("size", [11, 12])
def test_chunks_after_empty_data_are_not_audio(tmp_path, size):
    for content in (
        _wav(_FORMAT, _data(0)),
        _wav(_FORMAT, _data(0), _LIST, b"id3 ", struct.pack("<I", size), bytes(size)),
    ):
        with pytest.raises(DataError, match="contains no samples"):
            _file(tmp_path, content)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFDB])
def test_more_than_4_gib_of_unknown_size_are_read(tmp_path, size):
    header, path, end = _wav(_FORMAT, _data(size)), tmp_path / "a.wav", 44 + (5 << 30)
    with path.open("wb") as f:  # sparse
        f.write(header)
        f.seek(end)
        f.write(_DATA)
    file = audio_file.probe(path)
    assert file.frames == (5 << 28) + len(_AUDIO)
    assert np.array_equal(file.read(file.frames - 8000, 8000), _AUDIO / np.float32(32768))


def test_endless_chunks_are_refused(tmp_path):
    with pytest.raises(DataError, match="not audio that can be read"):
        _file(tmp_path, _wav((b"junk" + bytes(4)) * 100_000))
