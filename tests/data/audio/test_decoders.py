"""Exact windows of formats that libsndfile cannot seek in, or whose length it does not know."""

import io

import numpy as np
import pytest
import soundfile

from audiovae_jax.data.audio import audio_file, decoders

_AUDIO = (0.1 * np.random.default_rng(0).standard_normal((30_000, 2))).astype(np.float32)


def _file(tmp_path, content, name="a"):
    path = tmp_path / name
    path.write_bytes(content)
    return audio_file.probe(path)


def _encode(audio, format, subtype):
    encoded = io.BytesIO()
    soundfile.write(encoded, audio, 44100, format=format, subtype=subtype)
    return bytearray(encoded.getvalue())


def _require_exact(file, expected):
    """Read windows in an order that goes back and forth, each alone and all from one decoder."""
    assert file.frames == len(expected)
    again = audio_file.AudioFile(file.path, **file.to_json())
    starts = (20_000, 100, 0, file.frames - 500, 7777)
    with decoders.open_decoder(file.path, file.index) as decoder:
        for start in starts:
            assert np.array_equal(decoder.read(start, 500), expected[start : start + 500])
            assert np.array_equal(again.read(start, 500), expected[start : start + 500])


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize("tag", [b"", b"ID3\3\0\0\0\0\0\x20" + bytes(32)], ids=["plain", "tagged"])
def test_flac_of_unknown_length_is_counted(tmp_path, subtype, tag):
    content = _encode(_AUDIO, "FLAC", subtype)
    expected = soundfile.read(io.BytesIO(content), dtype="float32")[0]
    content[21] &= 0xF0  # the number of samples
    content[22:26] = bytes(4)
    _require_exact(_file(tmp_path, tag + content), expected)


@pytest.mark.parametrize(("format", "name", "at", "count"), [("AU", b".snd", 8, 4), ("CAF", b"data", 4, 8)])
def test_data_of_unknown_size_is_read(tmp_path, format, name, at, count):
    content = _encode(_AUDIO, format, "PCM_16")
    expected = soundfile.read(io.BytesIO(content), dtype="float32")[0]
    at += content.index(name)
    content[at : at + count] = b"\xff" * count
    _require_exact(_file(tmp_path, content), expected)


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32", "NMS_ADPCM_16"])
def test_formats_without_seeking_are_decoded_up_to_the_window(tmp_path, subtype):
    content = bytes(_encode(_AUDIO[:, :1], "WAV", subtype))
    file = _file(tmp_path, content)
    _require_exact(file, np.concatenate(list(audio_file.read_blocks(file, file.frames))))
    assert np.abs(file.read(0, file.frames)[:30_000] - _AUDIO[:, :1]).mean() < 0.1
