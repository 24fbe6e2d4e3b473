"""The links of Ogg files, and exact windows of them."""

import io
import struct
import time

import numpy as np
import pytest
import soundfile

from audiovae_jax.data.audio import audio_file
from audiovae_jax.errors import DataError

_RATE = 48000


def _rich(seconds, channels=1):
    """Return tones with bursts of noise, for which encoders switch between block sizes."""
    rng = np.random.default_rng(0)
    times = np.arange(int(seconds * _RATE)) / _RATE
    audio = sum(0.07 * np.sin(2 * np.pi * f * times + 1)[:, None] * np.ones(channels) for f in rng.uniform(80, 6000, 8))
    for start in rng.integers(0, len(times) - 4000, int(3 * seconds)):
        audio[start : start + 4000] += 0.3 * rng.standard_normal((4000, channels)) * np.hanning(4000)[:, None]
    return np.clip(audio, -0.99, 0.99).astype(np.float32)


def _voice(seconds):
    """Return a voice: harmonics whose pitch glides, with pauses of noise."""
    times = np.arange(int(seconds * _RATE)) / _RATE
    phase = np.cumsum(120 + 30 * np.sin(4.4 * times)) * 2 * np.pi / _RATE
    voice = sum(np.sin(k * phase) / k for k in range(1, 25))
    noise = np.random.default_rng(0).standard_normal(len(times))
    return (0.2 * np.where(np.sin(8 * times) > -0.7, voice, 0.1 * noise)).astype(np.float32)[:, None]


def _encode(audio, subtype="VORBIS", rate=_RATE, **options):
    encoded = io.BytesIO()
    with soundfile.SoundFile(encoded, "w", rate, audio.shape[1], format="OGG", subtype=subtype, **options) as f:
        f.write(audio)
    return encoded.getvalue()


def _decode(encoded):
    return soundfile.read(io.BytesIO(encoded), dtype="float32", always_2d=True)[0]


def _pages(encoded):
    pages = []
    while encoded:
        size = 27 + encoded[26] + sum(encoded[27 : 27 + encoded[26]])
        pages.append(encoded[:size])
        encoded = encoded[size:]
    return pages


def _changed(page, offset, data):
    """Return a page with other bytes at an offset, and its checksum by RFC 3533, section 6."""
    page = page[:offset] + data + page[offset + len(data) :]
    page, crc = page[:22] + bytes(4) + page[26:], 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 if crc >> 31 else crc << 1) & 0xFFFFFFFF
    return page[:22] + crc.to_bytes(4, "little") + page[26:]


def _file(tmp_path, encoded, **options):
    path = tmp_path / "a.ogg"
    path.write_bytes(encoded)
    return audio_file.probe(path, **options)


def _worst(file, expected, windows=60):
    """Return the largest difference of random windows from the decoded file."""
    rng, worst = np.random.default_rng(1), 0.0
    for _ in range(windows):
        count = int(rng.integers(1, min(20_000, file.frames)))
        start = int(rng.integers(0, file.frames - count + 1))
        window = file.read(start, count)
        assert window.shape == (count, file.channels)
        worst = max(worst, float(np.abs(window - expected[start : start + count]).max()))
    return worst


@pytest.mark.parametrize("level", [0.0, 0.6, 1.0])
def test_windows_of_vorbis_are_exact(tmp_path, level):
    encoded = _encode(_rich(8, 2), compression_level=level)
    file = _file(tmp_path, encoded)
    assert file.frames == 8 * _RATE
    assert _worst(file, _decode(encoded), 150) == 0


@pytest.mark.parametrize(
    ("audio", "level"),
    [
        (_rich(10), 0.98),
        (_rich(6, 2), 0.5),
        (_voice(6), 0.8),
        *(
            pytest.param(audio, level, marks=pytest.mark.slow)
            for audio, level in ((_rich(10), 0.9), (_rich(6, 2), 0.8), (_voice(10), 0.95))
        ),
    ],
)
def test_windows_of_opus_are_exact(tmp_path, audio, level):
    encoded = _encode(audio, "OPUS", compression_level=level)
    file = _file(tmp_path, encoded)
    assert file.frames == len(audio)
    assert _worst(file, _decode(encoded)) < 1e-6


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_links_of_a_chain_are_joined(tmp_path, subtype):
    links = [_encode(_rich(seconds), subtype) for seconds in (1.5, 2, 1)]
    file = _file(tmp_path, b"".join(links))
    assert file.frames == 4.5 * _RATE
    assert _worst(file, np.concatenate([_decode(link) for link in links])) < 1e-6
    assert np.array_equal(
        audio_file.AudioFile(file.path, **file.to_json()).read(0, file.frames), file.read(0, file.frames)
    )


def test_links_of_different_rates_are_refused(tmp_path):
    with pytest.raises(DataError, match="its part from 1.5 s on has 44100 Hz"):
        _file(tmp_path, _encode(_rich(1.5)) + _encode(_rich(1), rate=44100))


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_audio_before_a_missing_page_is_kept(tmp_path, subtype):
    pages = _pages(_encode(_rich(5), subtype))
    middle = len(pages) // 2
    encoded = b"".join(pages[:middle] + pages[middle + 1 :])
    with pytest.raises(DataError, match=r"pages are missing; audio ends at \d\.\d s"):
        _file(tmp_path, encoded)
    file = _file(tmp_path, encoded, allow_truncated=True)
    assert 1 < file.seconds < 4
    assert _worst(file, _decode(b"".join(pages[:middle]))) < 1e-6


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_cut_and_corrupt_pages_are_found(tmp_path, subtype):
    encoded = _encode(_rich(5), subtype)
    corrupt = bytearray(encoded)
    corrupt[len(encoded) // 2] ^= 1
    for damaged in (encoded[: len(encoded) // 2], bytes(corrupt)):
        with pytest.raises(DataError, match=r"a page is cut or corrupt; audio ends at \d\.\d s"):
            _file(tmp_path, damaged)
        file = _file(tmp_path, damaged, allow_truncated=True)
        assert _worst(file, _decode(encoded), 10) < 1e-6


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_recordings_of_a_live_stream_begin_anywhere(tmp_path, subtype):
    headers, pages = _pages(_encode(_rich(6), subtype)), []
    headers, pages = headers[:2], headers[3:]
    pages = [_changed(p, 6, struct.pack("<q", struct.unpack("<q", p[6:14])[0] + 10**9)) for p in pages]
    encoded = b"".join(headers + pages)
    file = _file(tmp_path, encoded)
    expected = file.read(0, file.frames)
    assert 3 < file.seconds < 6
    assert _worst(file, expected, 20) < 1e-6
    assert np.array_equal(_decode(encoded)[: file.frames], expected)


def test_a_stream_without_its_last_page_is_read(tmp_path):
    pages = _pages(_encode(_rich(4)))[:-1]
    file = _file(tmp_path, b"".join(pages))
    assert file.frames == int.from_bytes(pages[-1][6:14], "little")
    assert _worst(file, _decode(b"".join(pages)), 10) == 0


def test_several_streams_at_once_are_refused(tmp_path):
    audio = _encode(_rich(1))
    first = b"OggS\0\2" + bytes(20) + bytes([1, 42]) + b"\x80theora" + bytes(35)
    video = _changed(first, 14, struct.pack("<II", 7, 0))
    with pytest.raises(DataError, match="several streams: Theora video, Vorbis"):
        _file(tmp_path, video + audio)
    with pytest.raises(DataError, match=r"Ogg with Theora video\); convert it to FLAC"):
        _file(tmp_path, video + _changed(_changed(video, 5, b"\0"), 18, b"\1"))


@pytest.mark.parametrize(
    "encoded",
    [
        b"OggS",
        b"OggS" * 200_000,
        (b"OggS\0\2" + bytes(20) + b"\xff" * 256) * 3000,
        b"OggS" + np.random.default_rng(0).bytes(1 << 20),
        _encode(_rich(1))[:60] + b"OggS\0\0" + struct.pack("<QIII", 2**62, 0, 1, 0) + b"\xff" * 400,
    ],
)
def test_hostile_bytes_are_refused_at_once(tmp_path, encoded):
    start = time.monotonic()
    with pytest.raises(DataError):
        _file(tmp_path, encoded)
    assert time.monotonic() - start < 5


def test_positions_that_jump_are_damage(tmp_path):
    pages = _pages(_encode(_rich(4)))
    middle = len(pages) // 2
    pages[middle] = _changed(pages[middle], 6, struct.pack("<q", 2**62))
    with pytest.raises(DataError, match=r"positions of its pages jump; audio ends at \d\.\d s"):
        _file(tmp_path, b"".join(pages))
