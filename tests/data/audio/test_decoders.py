"""Exact windows of formats that libsndfile cannot seek in, or whose length it does not know."""

import io
import struct

import numpy as np
import pytest
import soundfile

from audiovae_jax.data.audio import audio_file, decoders
from audiovae_jax.data.audio.section import Section
from audiovae_jax.errors import DataError

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


@pytest.mark.parametrize("tags", [1, 2])
@pytest.mark.parametrize("kind", ["WAV", "AIFF", "FLAC"])
def test_tags_before_a_format_hide_no_samples_in_an_archive(tmp_path, kind, tags):
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (8000, 2))
    file = io.BytesIO()
    soundfile.write(file, audio, 8000, format=kind, subtype="PCM_16")
    content = (b"ID3\x03\0\0\0\0\x08\0" + bytes(1024)) * tags + file.getvalue()
    (tmp_path / "a").write_bytes(b"#" * 100 + content + b"#" * 100)
    member = audio_file.probe(Section(tmp_path / "a", 100, len(content), f"a.{kind.lower()}"))
    assert member.frames == 8000
    np.testing.assert_allclose(member.read(7000, 1000), audio[7000:], atol=1e-4)


def test_dwvw_is_decoded_up_to_the_window(tmp_path):
    file = _file(tmp_path, _encode(_AUDIO[:, :1], "AIFF", "DWVW_16"))
    same = io.BytesIO(_encode(_AUDIO[:, :1], "AIFF", "PCM_16"))
    _require_exact(file, soundfile.read(same, dtype="float32", always_2d=True)[0])


def test_a_voc_of_several_blocks_has_no_block_headers_in_its_audio(tmp_path):
    pytest.importorskip("av")
    samples = np.round(_AUDIO * 32768).astype("<i2")

    def block(kind, data):
        return bytes([kind]) + len(data).to_bytes(3, "little") + data

    layout = struct.pack("<IBBHI", 44100, 16, 2, 4, 0)
    blocks = block(9, layout + samples[:9000].tobytes()) + block(2, samples[9000:].tobytes())
    file = _file(tmp_path, b"Creative Voice File\x1a" + struct.pack("<HHH", 26, 0x114, 0x111F) + blocks + b"\0")
    _require_exact(file, samples.astype(np.float32) / 32768)


def test_mp3_in_wav_is_refused(tmp_path):
    file = io.BytesIO()
    soundfile.write(file, _AUDIO, 44100, format="MP3", subtype="MPEG_LAYER_III")
    data = file.getvalue()
    layout = struct.pack("<HHIIHHHHIHHH", 0x55, 2, 44100, 16000, 1, 0, 12, 1, 2, 417, 1, 1393)
    chunks = b"fmt " + struct.pack("<I", len(layout)) + layout + b"data" + struct.pack("<I", len(data)) + data
    with pytest.raises(DataError, match="MP3 in another format cannot be read exactly; convert it to FLAC"):
        _file(tmp_path, b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks, "a.wav")
