"""Containers that FFmpeg decodes: lengths, exact windows, and clear errors."""

import sys

import numpy as np
import pytest

from audiovae_jax.data.audio import audio_file
from audiovae_jax.errors import DataError

RATE = 48000


def _write(path, codec, container, seconds=1.0):
    """Encode a tone, and return its samples `[T, 2]`."""
    av = pytest.importorskip("av")
    t = np.arange(int(seconds * RATE)) / RATE
    audio = (0.3 * np.sin(2 * np.pi * np.outer(t, [440, 660]))).astype(np.float32)
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=RATE)
        stream.layout = "stereo"
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio.T), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = RATE, 0
        converter = av.AudioResampler(stream.codec_context.format or "fltp", "stereo", RATE, frame_size=960)
        for block in [*converter.resample(frame), *converter.resample(None), None]:
            file.mux(stream.encode(block))
    return audio


@pytest.mark.parametrize(
    ("suffix", "codec", "container", "bound"),
    [(".m4a", "aac", "ipod", None), (".m4a", "alac", "ipod", 1e-4), (".mkv", "flac", "matroska", 1e-4),
     (".webm", "libopus", "webm", None), (".mov", "pcm_s16le", "mov", 1e-4),
     (".caf", "alac", "caf", None)],
)  # fmt: skip
def test_windows_equal_the_whole(tmp_path, suffix, codec, container, bound):
    path = tmp_path / f"a{suffix}"
    audio = _write(path, codec, container)
    file = audio_file.probe(path)
    assert (file.sample_rate, file.channels) == (RATE, 2)
    whole = file.read(0, file.frames)
    if bound is not None:
        assert file.frames == len(audio)
        np.testing.assert_allclose(whole, audio, atol=bound)
    rng = np.random.default_rng(0)
    for _ in range(10):
        count = int(rng.integers(1, 20_000))
        start = int(rng.integers(0, file.frames - count))
        np.testing.assert_array_equal(file.read(start, count), whole[start : start + count])


def test_a_wrong_suffix_does_not_matter(tmp_path):
    audio = _write(tmp_path / "a.m4a", "alac", "ipod")
    (tmp_path / "a.m4a").rename(tmp_path / "a.wav")
    assert audio_file.probe(tmp_path / "a.wav").frames == len(audio)


def test_a_cut_file_is_reported_with_the_second_where_it_ends(tmp_path):
    path = tmp_path / "a.mkv"
    _write(path, "flac", "matroska", 3.0)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    file = audio_file.probe(path, allow_truncated=True)
    assert 0.5 < file.seconds < 2.5
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(5000))
    with pytest.raises(DataError, match=r"MP4, M4A or MOV (cannot be read|has no sound)"):
        audio_file.probe(tmp_path / "a.m4a")


@pytest.mark.parametrize(
    ("codec", "container", "layout", "speakers"),
    [("flac", "matroska", "3.1", ("FL", "FR", "FC", "LFE")), ("pcm_s16le", "matroska", "4 channels", None)],
)
def test_speakers_are_those_of_the_layout_if_it_has_names(tmp_path, codec, container, layout, speakers):
    av = pytest.importorskip("av")
    path = tmp_path / "a.mka"
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=RATE)
        stream.layout = layout
        frame = av.AudioFrame.from_ndarray(np.full((1, 4 * 960), 1000, np.int16), format="s16", layout=layout)
        frame.sample_rate, frame.pts = RATE, 0
        for block in (frame, None):
            file.mux(stream.encode(block))
    file = audio_file.probe(path)
    assert (file.channels, file.speakers) == (4, speakers)
    assert audio_file.read_window(file, 0.0, 100, RATE, 2).shape == (100, 2)


def test_raw_aac_of_any_bit_rate_is_complete(tmp_path):
    audio = _write(tmp_path / "a.aac", "aac", "adts", 2.0)
    file = audio_file.probe(tmp_path / "a.aac")
    assert (file.damage, file.frames) == (None, pytest.approx(len(audio), abs=4096))


def test_damage_in_the_middle_is_reported_and_read_up_to_it(tmp_path):
    path = tmp_path / "a.mka"
    _write(path, "flac", "matroska", 2.0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 600] = bytes(600)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"(damaged|truncated): audio ends at [01]\.\d\d s"):
        audio_file.probe(path)
    file = audio_file.probe(path, allow_truncated=True)
    assert 0.1 < file.seconds < 1.9
    assert file.read(0, file.frames).shape == (file.frames, 2)


def test_without_pyav_the_error_names_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(5000))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"MP4, M4A or MOV is not read without PyAV; install PyAV with pip install"):
        audio_file.probe(tmp_path / "a.m4a")
