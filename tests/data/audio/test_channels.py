"""Speaker layouts: what files tell, and what is heard of each speaker in stereo."""

import numpy as np
import pytest
import soundfile

from audiovae_jax.data.audio import audio_file, channels, stream
from audiovae_jax.data.sets.catalog import Excerpt

RATE = 48000
H = 0.5**0.5  # -3 dB
LEFT, RIGHT, CENTRE, NONE = (1, 0), (0, 1), (H, H), (0, 0)
SIDE_LEFT, SIDE_RIGHT, BACK = (H, 0), (0, H), (0.5, 0.5)
# By the mask of a WAVE file: the gains of its channels in left and right.
MASKS = {
    "2.1": (0x00B, [LEFT, RIGHT, NONE]),
    "3.0": (0x007, [LEFT, RIGHT, CENTRE]),
    "quad": (0x033, [LEFT, RIGHT, SIDE_LEFT, SIDE_RIGHT]),
    "quad (side)": (0x603, [LEFT, RIGHT, SIDE_LEFT, SIDE_RIGHT]),
    "4.0": (0x107, [LEFT, RIGHT, CENTRE, BACK]),
    "5.0": (0x037, [LEFT, RIGHT, CENTRE, SIDE_LEFT, SIDE_RIGHT]),
    "5.0 (side)": (0x607, [LEFT, RIGHT, CENTRE, SIDE_LEFT, SIDE_RIGHT]),
    "5.1": (0x03F, [LEFT, RIGHT, CENTRE, NONE, SIDE_LEFT, SIDE_RIGHT]),
    "5.1 (side)": (0x60F, [LEFT, RIGHT, CENTRE, NONE, SIDE_LEFT, SIDE_RIGHT]),
    "6.1": (0x70F, [LEFT, RIGHT, CENTRE, NONE, BACK, SIDE_LEFT, SIDE_RIGHT]),
    "7.1": (0x63F, [LEFT, RIGHT, CENTRE, NONE, SIDE_LEFT, SIDE_RIGHT, SIDE_LEFT, SIDE_RIGHT]),
    "7.1 (wide)": (0x0FF, [LEFT, RIGHT, CENTRE, NONE, SIDE_LEFT, SIDE_RIGHT, LEFT, RIGHT]),
}


def _in_turn(count, frames=480):
    """Return `[count * frames, count]`: noise in one channel after the other."""
    audio = np.zeros((count * frames, count), np.float32)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, frames).astype(np.float32)
    for i in range(count):
        audio[i * frames : (i + 1) * frames, i] = noise
    return audio


def _write_wave(path, audio, mask):
    """Write WAVE_FORMAT_EXTENSIBLE with a channel mask."""
    soundfile.write(path, audio, RATE, format="WAVEX", subtype="FLOAT")
    content = bytearray(path.read_bytes())
    at = content.index(b"fmt ") + 8 + 20
    content[at : at + 4] = mask.to_bytes(4, "little")
    path.write_bytes(content)


@pytest.mark.parametrize("layout", MASKS)
def test_every_speaker_is_heard_by_bs775_as_the_mask_names_it(tmp_path, layout):
    mask, gains = MASKS[layout]
    audio = _in_turn(len(gains))
    _write_wave(tmp_path / "a.wav", audio, mask)
    file = audio_file.probe(tmp_path / "a.wav")
    expected = audio @ np.array(gains, np.float32)
    length = len(audio)
    for source in (file, Excerpt(file, 0, length)):
        np.testing.assert_allclose(audio_file.read_window(source, 0.0, length, RATE, 2), expected, atol=1e-6)
        mono = audio_file.read_window(source, 0.0, length, RATE, 1)
        np.testing.assert_allclose(mono[:, 0], expected.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("count", "gains"),
    [
        (3, MASKS["3.0"][1]),
        (4, MASKS["quad"][1]),
        (5, MASKS["5.0"][1]),
        (6, MASKS["5.1"][1]),
        (7, MASKS["6.1"][1]),
        (8, MASKS["7.1"][1]),
    ],
)
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_without_a_map_the_standard_layout_is_assumed_and_flac_has_it(tmp_path, suffix, count, gains):
    soundfile.write(tmp_path / f"a{suffix}", _in_turn(count), RATE)
    file = audio_file.probe(tmp_path / f"a{suffix}")
    assert (file.speakers is None) == (suffix == ".wav")
    audio = np.eye(count, dtype=np.float32)
    np.testing.assert_array_equal(audio_file.adapt_channels(audio, 2, file.speakers), np.array(gains, np.float32))


@pytest.mark.parametrize("layout", ["2.1", "4.0", "7.1"])
def test_flac_has_the_mask_of_its_tags(tmp_path, layout):
    path = tmp_path / "a.flac"
    mask, gains = MASKS[layout]
    soundfile.write(path, _in_turn(len(gains)), RATE)
    content = path.read_bytes()
    text = f"waveformatextensible_channel_mask=0x{mask:X}".encode()
    tags = bytes(4) + (1).to_bytes(4, "little") + len(text).to_bytes(4, "little") + text
    block = bytes([4]) + len(tags).to_bytes(3) + tags
    path.write_bytes(content[:42] + block + content[42:])  # after the first metadata block
    file = audio_file.probe(path)
    audio = np.eye(len(gains), dtype=np.float32)
    np.testing.assert_array_equal(audio_file.adapt_channels(audio, 2, file.speakers), np.array(gains, np.float32))


def test_every_speaker_but_lfe_keeps_its_energy():
    fronts, surrounds = ("FL", "FR", "FC", "FLC", "FRC"), ("BL", "BR", "BC", "SL", "SR")
    every = (*fronts, "LFE", *surrounds, "TC", "TFL", "TFC", "TFR", "TBL", "TBC", "TBR")
    stereo = channels.downmixed(np.eye(len(every), dtype=np.float32), every)
    power = dict(zip(every, np.square(stereo).sum(axis=1), strict=True))
    assert power.pop("LFE") == 0
    assert min(power.values()) == pytest.approx(0.5)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("count", [3, 5, 6, 7, 8])
def test_vorbis_order_becomes_wave_order(tmp_path, subtype, count):
    """The file is of libsndfile, which keeps the order of the channels; the centre is the second of them."""
    t = np.arange(RATE) / RATE
    audio = np.zeros((RATE, count), np.float32)
    audio[:, 1] = 0.5 * np.sin(2 * np.pi * 1000 * t)
    soundfile.write(tmp_path / "a.ogg", audio, RATE, format="OGG", subtype=subtype)
    file = audio_file.probe(tmp_path / "a.ogg")
    assert file.speakers[:3] == ("FL", "FC", "FR")
    middle = audio_file.read_window(file, 0.5, RATE // 2, RATE, 2)
    rms = np.sqrt(np.square(middle).mean(axis=0))
    np.testing.assert_allclose(rms, 0.5 * H * H, rtol=0.02)  # the RMS of the sine, at -3 dB in both
    source = stream.open_file(tmp_path / "a.ogg")
    levels = np.abs(np.concatenate(list(source.blocks()))).max(axis=0)
    assert source.speakers[:3] == ("FL", "FR", "FC")
    assert np.argmax(levels) == 2


def test_several_channels_stay_those_of_wave_order():
    wave, vorbis = ("FL", "FR", "FC", "LFE", "BL", "BR"), ("FL", "FC", "FR", "BL", "BR", "LFE")
    audio = np.arange(6, dtype=np.float32)[None]
    np.testing.assert_array_equal(audio_file.adapt_channels(audio, 6, wave), audio)
    np.testing.assert_array_equal(audio_file.adapt_channels(audio, 6), audio)
    np.testing.assert_array_equal(audio_file.adapt_channels(audio, 6, vorbis), [[0, 2, 1, 5, 3, 4]])
    np.testing.assert_array_equal(audio_file.adapt_channels(audio, 4, vorbis), [[0, 2, 1, 5]])
    np.testing.assert_array_equal(audio_file.adapt_channels(audio, 4), audio[:, :4])


def test_a_mask_of_too_few_speakers_is_no_map(tmp_path):
    _write_wave(tmp_path / "a.wav", _in_turn(6), 0x003)
    assert audio_file.probe(tmp_path / "a.wav").speakers is None
    assert channels.assumed(6) == "6 channels and no channel map, read as 5.1"
    assert channels.assumed(12) == "12 channels and no channel map, read as its first channels"


def test_mono_and_stereo_need_no_names(tmp_path):
    for count, mask in ((1, 0x4), (2, 0x3)):
        _write_wave(tmp_path / "a.wav", _in_turn(count), mask)
        assert audio_file.probe(tmp_path / "a.wav").speakers is None


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus"])
def test_what_is_written_has_its_speakers_where_the_format_has_them(tmp_path, suffix):
    t = np.arange(RATE) / RATE
    for speaker in range(3):  # left, right, centre of 5.1
        audio = np.zeros((RATE, 6), np.float32)
        audio[:, speaker] = 0.5 * np.sin(2 * np.pi * 1000 * t)
        stream.write(stream.of_array(audio, RATE), tmp_path / f"a{suffix}")
        file = audio_file.probe(tmp_path / f"a{suffix}")
        stereo = audio_file.read_window(file, 0.5, RATE // 2, RATE, 2)
        expected = np.array([LEFT, RIGHT, CENTRE][speaker]) * 0.5 * H
        np.testing.assert_allclose(np.sqrt(np.square(stereo).mean(axis=0)), expected, atol=0.01)
