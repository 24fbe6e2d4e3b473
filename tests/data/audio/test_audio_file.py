import numpy as np
import pytest
import soundfile

from audiovae_jax.data.audio import audio_file
from audiovae_jax.data.formats import containers
from audiovae_jax.errors import DataError


def _tone(rate, seconds, channels=2, frequency=440.0):
    t = np.arange(int(rate * seconds)) / rate
    return np.stack([np.sin(2 * np.pi * frequency * t)] * channels, axis=1).astype(np.float32) * 0.5


def test_a_window_is_the_slice_of_the_whole_file(tmp_path):
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (5000, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", audio, 44100, subtype="FLOAT")
    file = audio_file.probe(tmp_path / "a.wav")
    assert (file.frames, file.sample_rate, file.channels) == (5000, 44100, 2)
    for position in (0.0, 0.37, 0.9999):
        start = int(position * 4000)
        window = audio_file.read_window(file, position, 1000, 44100, 2)
        np.testing.assert_array_equal(window, audio[start : start + 1000])


@pytest.mark.parametrize("rate", [22050, 48000, 8000, 96000])
def test_a_resampled_window_is_the_slice_of_the_resampled_file(tmp_path, rate):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2 * rate, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", noise, rate, subtype="FLOAT")
    whole = audio_file.resample(noise, rate, 44100)
    file = audio_file.probe(tmp_path / "a.wav")
    for position in (0.0, 0.31, 0.77777, 1.0):
        window = audio_file.read_window(file, position, 8192, 44100, 2)
        first, _ = audio_file.window(file, position, 8192, 44100)
        assert first * 44100 % rate == 0
        start = first * 44100 // rate
        assert abs(first - position * (file.frames - 8192 * rate / 44100)) <= rate / 100
        np.testing.assert_allclose(window, whole[start : start + 8192], atol=1e-4)


def test_a_short_file_is_padded_with_zeros(tmp_path):
    soundfile.write(tmp_path / "a.wav", _tone(44100, 0.01), 44100)
    window = audio_file.read_window(audio_file.probe(tmp_path / "a.wav"), 0.5, 1000, 44100, 2)
    assert (window[441:] == 0).all()
    assert window[:441].any()


# MPEG-1, 44.1 kHz, stereo, 192 and 384 kbit/s: headers without CRC, and zeros, which are silence.
_MPEG = {
    ".mp2": ((b"\xff\xfd\xa0\x00" + bytes(622)) * 40, 1152),
    ".mp1": ((b"\xff\xff\xc0\x00" + bytes(412)) * 40, 384),
}
_CONTAINERS = {
    ".wav": "WAV", ".wave": "WAV", ".bwf": "WAV", ".rf64": "RF64", ".bw64": "RF64", ".w64": "W64", ".flac": "FLAC",
    ".ogg": "OGG", ".oga": "OGG", ".opus": "OGG", ".mp3": "MP3", ".mpga": "MP3", ".aif": "AIFF", ".aiff": "AIFF",
    ".aifc": "AIFF", ".au": "AU", ".snd": "AU", ".caf": "CAF", ".voc": "VOC", ".sph": "NIST", ".nist": "NIST",
    ".sf": "IRCAM", ".ircam": "IRCAM", ".paf": "PAF", ".pvf": "PVF", ".avr": "AVR", ".svx": "SVX", ".8svx": "SVX",
    ".sds": "SDS", ".xi": "XI", ".wve": "WVE",
}  # fmt: skip
_MONO = (".svx", ".8svx", ".sds", ".xi", ".wve")  # formats of one channel; WVE also has one rate


@pytest.mark.parametrize("suffix", [suffix for suffix in audio_file.EXTENSIONS if suffix not in containers.SUFFIXES])
def test_every_suffix_that_is_looked_for_is_read(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix in _MPEG:
        content, frame_samples = _MPEG[suffix]
        path.write_bytes(content)
        file = audio_file.probe(path, allow_silence=True)
        assert (file.channels, file.frames) == (2, 40 * frame_samples)
        return
    rate = 8000 if suffix == ".wve" else 48000
    audio = _tone(rate, 0.5)[:, : 1 if suffix in _MONO else 2]
    soundfile.write(path, audio, rate, format=_CONTAINERS[suffix])
    file = audio_file.probe(path, allow_silence=True)
    assert (file.channels, file.frames) == (audio.shape[1], rate // 2)
    middle = slice(rate // 4, rate // 3)
    np.testing.assert_allclose(file.read(0, rate // 2)[middle], audio[middle], atol=0.05)


def test_channels_are_adapted():
    mono = np.ones((3, 1), np.float32)
    np.testing.assert_array_equal(audio_file.adapt_channels(mono, 2), np.ones((3, 2)))
    stereo = np.array([[1.0, 0.0]], np.float32)
    np.testing.assert_array_equal(audio_file.adapt_channels(stereo, 1), [[0.5]])
    surround = np.eye(6, dtype=np.float32)  # one channel at a time: L R C LFE Ls Rs
    h = np.float32(0.5**0.5)
    expected = [[1, 0], [0, 1], [h, h], [0, 0], [h, 0], [0, h]]
    np.testing.assert_allclose(audio_file.adapt_channels(surround, 2), expected)
    with pytest.raises(DataError, match="2 channels cannot be made into 6"):
        audio_file.adapt_channels(stereo, 6)


def test_too_few_channels_are_found_when_probing(tmp_path):
    soundfile.write(tmp_path / "a.wav", _tone(44100, 0.2), 44100)
    with pytest.raises(DataError, match="2 channels cannot be made into 4"):
        audio_file.probe(tmp_path / "a.wav", channels=4)


def _bad(folder, kind):
    path = folder / f"{kind}.wav"
    rng = np.random.default_rng(0)
    if kind == "text":
        path.write_text("this is not audio\n" * 100)
    elif kind == "empty":
        path.touch()
    elif kind == "nan":
        soundfile.write(path, np.full((5000, 2), np.nan, np.float32), 44100, subtype="FLOAT")
    elif kind == "short":
        soundfile.write(path, rng.uniform(-1, 1, (3, 2)), 44100)
    elif kind == "silent":
        soundfile.write(path, np.zeros((50000, 2)), 44100)
    elif kind == "truncated":
        path = folder / "truncated.flac"
        soundfile.write(path, rng.uniform(-1, 1, (88200, 2)), 44100)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("text", "not audio that can be read"),
        ("empty", "the file is empty"),
        ("nan", "contains NaN or infinite samples"),
        ("short", "3 samples are shorter than data.min_seconds=0.1"),
        ("silent", "every sample is zero"),
        ("truncated", "truncated"),
    ],
)
def test_unusable_files_are_told_apart(tmp_path, kind, reason):
    with pytest.raises(DataError, match=reason):
        audio_file.probe(_bad(tmp_path, kind), min_seconds=0.1)


def test_a_single_click_in_a_silent_file_makes_it_audio(tmp_path):
    audio = np.zeros((50000, 2))
    audio[12345] = 0.5
    soundfile.write(tmp_path / "a.wav", audio, 44100)
    assert audio_file.probe(tmp_path / "a.wav").frames == 50000
