"""The codec: shapes, rates and channels are restored; files, latents on disk, and clear errors."""

import dataclasses
import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import soundfile
from conftest import GOLDEN, applied, random_variables

from audiovae_jax import AudioVAE, Codec, save_model
from audiovae_jax.errors import CheckpointError, DataError
from audiovae_jax.inference.latents import Latents

CONFIG = {"base_channels": 3, "channel_mults": (1, 2), "strides": (2, 4), "latent_dim": 3, "dilations": (1, 3)}


def _model(**changes):
    model = AudioVAE(**{**CONFIG, **changes})
    return model, random_variables(model)


@pytest.fixture(scope="module")
def stereo():
    return Codec(*_model(), sample_rate=8000)


@pytest.fixture(scope="module")
def mono():
    return Codec(*_model(in_channels=1), sample_rate=8000)


def _noise(*shape):
    return (0.2 * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "sample_rate"),
    [((500,), None), ((501, 1), 4000), ((502, 2), 11025), ((2, 503, 2), 11025), ((2, 503, 1), None), ((1,), 11025)],
)
def test_decoded_audio_has_the_shape_of_the_input(stereo, shape, sample_rate):
    audio = _noise(*shape)
    latents = stereo.encode(jnp.asarray(audio), sample_rate)
    assert latents.sample_rate == (sample_rate or 8000)
    reconstruction = stereo.decode(latents)
    assert reconstruction.shape == shape
    assert reconstruction.dtype == np.float32


def test_the_codec_is_the_model(stereo):
    model, variables = _model()
    audio = _noise(2, 512, 2)
    expected = applied(model, variables, audio, deterministic=True)
    latents = stereo.encode(audio)
    np.testing.assert_allclose(latents.z, expected.z, atol=1e-5)
    np.testing.assert_allclose(stereo.decode(latents), expected.reconstruction, atol=1e-5)
    np.testing.assert_allclose(stereo.decode(np.asarray(expected.z)), expected.reconstruction, atol=1e-5)
    np.testing.assert_allclose(stereo.decode(expected.z[0]), expected.reconstruction[0], atol=1e-5)
    again = applied(stereo.model, stereo.variables, audio, deterministic=True)
    np.testing.assert_allclose(again.reconstruction, expected.reconstruction, atol=1e-5)


def test_mono_goes_through_a_stereo_model_as_two_equal_channels(stereo):
    audio = _noise(400, 1)
    twice = stereo.reconstruct(np.repeat(audio, 2, axis=1))
    np.testing.assert_allclose(stereo.reconstruct(audio), twice.mean(axis=1, keepdims=True), atol=1e-6)


def test_a_mono_model_encodes_each_channel_separately(mono):
    audio = _noise(400, 2)
    both = mono.reconstruct(audio)
    for channel in range(2):
        np.testing.assert_allclose(both[:, channel], mono.reconstruct(audio[:, channel]), atol=1e-6)
    batch = _noise(3, 400, 2)
    np.testing.assert_allclose(mono.reconstruct(batch)[1], mono.reconstruct(batch[1]), atol=1e-6)


def test_channels_are_mixed_only_when_asked(stereo):
    with pytest.raises(DataError, match="the audio has 6 channels, but the model needs 2; convert it first"):
        stereo.encode(_noise(400, 6))
    for shape in ((400,), (3, 400)):
        with pytest.warns(UserWarning, match="the audio has 6 channels and no channel map, read as 5.1"):
            made = stereo.reconstruct(_noise(*shape, 6), mix=True)
        assert made.shape == (*shape, 2)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros((100, 2), np.int16), "audio is int16; give floats"),
        (np.zeros((2, 44100), np.float32), "44100 channels; the last axis must be the channels; transpose"),
        (np.zeros((1, 2, 44100), np.float32), r"audio of shape \[1, 2, 44100\] has 44100 .*; transpose"),
        (np.full((100, 2), np.nan, np.float32), "NaN or infinite"),
        (np.zeros((0, 2), np.float32), r"must be \[T\], \[T, C\] or \[B, T, C\], not \[0, 2\]"),
        (np.zeros((1, 1, 100, 2), np.float32), r"must be \[T\], \[T, C\] or \[B, T, C\]"),
        ("nothing.wav", "nothing.wav: there is no such file"),
        (np.full((100, 2), 1e300), "NaN or infinite values, or values too large for float32"),
        ([[0.0, 0.0], [0.0]], "audio cannot be converted to one array"),
    ],
)
def test_audio_that_cannot_be_used_is_refused(stereo, audio, message):
    with pytest.raises(DataError, match=message):
        stereo.encode(audio)


@pytest.mark.parametrize("rate", [2**31 - 1, 0, -44100, 44100.5, "44100", float("nan")])
def test_a_rate_that_cannot_be_is_refused(stereo, rate):
    with pytest.raises(DataError, match=r"sample_rate=.* must be a whole number"):
        stereo.encode(_noise(100, 2), rate)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"chunk_length": 0}, {"batch_size": 1.5}, {"sample_rate": -1}])
def test_numbers_that_cannot_be_are_refused(options):
    (name,) = options
    with pytest.raises(DataError, match=f"{name}=.* must be a whole number"):
        Codec(*_model(), **options)


def test_latents_that_are_no_numbers_are_refused(stereo):
    for value in (np.nan, 1e300):
        with pytest.raises(DataError, match="the latents must not contain NaN or infinite values"):
            stereo.decode(np.full((5, 3), value))
    latents = stereo.encode(_noise(100, 2))
    latents.z[0, 3] = np.inf
    with pytest.raises(DataError, match="the latents must not contain NaN or infinite values"):
        stereo.decode(latents)
    for shape in ((0, 3), (2, 0, 3)):
        with pytest.raises(DataError, match="latents must be"):
            stereo.decode(np.zeros(shape, np.float32))


def test_a_failure_with_a_file_names_it(stereo, tmp_path):
    soundfile.write(tmp_path / "six.wav", _noise(3000, 6), 8000)
    for use in (stereo.encode, lambda path: stereo.reconstruct_file(path, tmp_path / "out.wav")):
        with pytest.raises(DataError, match="six.wav: the audio has 6 channels, but the model needs 2"):
            use(tmp_path / "six.wav")


def test_surround_is_mixed_by_the_speakers_of_its_file(stereo, tmp_path):
    audio = np.zeros((400, 5), np.float32)
    audio[:, 2] = _noise(400)  # the centre
    soundfile.write(tmp_path / "a.flac", audio, 8000, subtype="PCM_24")
    soundfile.write(tmp_path / "a.wav", audio, 8000, subtype="PCM_24")
    both = np.repeat(soundfile.read(tmp_path / "a.wav", dtype="float32")[0][:, 2:3], 2, axis=1) * np.float32(0.5**0.5)
    expected = stereo.reconstruct(both)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(stereo.decode(stereo.encode(tmp_path / "a.flac", mix=True)), expected, atol=1e-6)
    with pytest.warns(UserWarning, match="a.wav: the audio has 5 channels and no channel map, read as 5.0"):
        np.testing.assert_allclose(stereo.decode(stereo.encode(tmp_path / "a.wav", mix=True)), expected, atol=1e-6)


def test_a_mono_model_encodes_surround_channel_by_channel_or_mixed(mono):
    audio = _noise(400, 6)
    assert mono.reconstruct(audio).shape == (400, 6)
    np.testing.assert_allclose(mono.reconstruct(audio)[:, 4], mono.reconstruct(audio[:, 4]), atol=1e-6)


def test_sampling_needs_a_key(stereo):
    audio = _noise(400, 2)
    mean = stereo.encode(audio).z
    np.testing.assert_array_equal(mean, stereo.encode(audio).z)
    sampled = stereo.encode(audio, key=jax.random.key(0)).z
    np.testing.assert_array_equal(sampled, stereo.encode(audio, key=jax.random.key(0)).z)
    assert np.abs(sampled - mean).max() > 0.01


def test_latents_survive_the_disk(stereo, tmp_path):
    latents = stereo.encode(_noise(2, 301, 1), 11025)
    latents.save(tmp_path / "x.safetensors")
    again = Latents.load(tmp_path / "x.safetensors")
    for field in dataclasses.fields(Latents):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(latents, field.name))
    np.testing.assert_array_equal(stereo.decode(again), stereo.decode(latents))
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("rate", [11025.0, np.int64(11025), np.float32(11025), jnp.int32(11025)])
def test_latents_of_a_rate_of_any_type_survive_the_disk(stereo, tmp_path, rate):
    latents = stereo.encode(_noise(301, 1), rate)
    latents.save(tmp_path / "x.safetensors")
    again = Latents.load(tmp_path / "x.safetensors")
    assert (again.sample_rate, type(again.sample_rate)) == (11025, int)


def test_latents_are_their_array_and_a_path_decodes_as_they_do(stereo, tmp_path):
    latents = stereo.encode(np.zeros((700, 2), np.float32) + 0.1)
    latents.save(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(np.asarray(latents), latents.z)
    assert np.asarray(latents, np.float64).dtype == np.float64
    np.testing.assert_array_equal(stereo.decode(tmp_path / "x.safetensors"), stereo.decode(latents))
    assert oct((tmp_path / "x.safetensors").stat().st_mode & 0o777) == oct(0o666 & ~_umask())


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_latents_in_torchs_order_are_refused_with_the_remedy(stereo):
    width = stereo.model.latent_dim
    with pytest.raises(DataError, match=rf"\[1, {width}, 50\] are in PyTorch's order; transpose them"):
        stereo.decode(np.zeros((1, width, 50), np.float32))


@pytest.mark.parametrize(("dtype", "share"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8)])
def test_latents_kept_in_halves_are_rounded(stereo, tmp_path, dtype, share):
    latents = stereo.encode(0.1 * np.random.default_rng(0).standard_normal((700, 2)))
    latents.save(tmp_path / "x.safetensors", dtype)
    again = Latents.load(tmp_path / "x.safetensors")
    assert again.z.dtype == np.float32
    np.testing.assert_allclose(again.z, latents.z, rtol=share, atol=1e-7)
    assert (tmp_path / "x.safetensors").stat().st_size < latents.z.nbytes + 600
    with pytest.raises(DataError, match="storage_dtype='int8' must be one of float32, float16, bfloat16"):
        latents.save(tmp_path / "x.safetensors", "int8")


@pytest.mark.slow
def test_a_long_file_is_encoded_with_progress_and_its_latents_kept_as_asked(tmp_path):
    codec = Codec(*_model(), sample_rate=8000, chunk_length=400, batch_size=1)
    audio = _noise(4000, 2)
    soundfile.write(tmp_path / "in.wav", audio, 8000, subtype="FLOAT")
    seen, key = [], jax.random.key(3)
    codec.encode_file(tmp_path / "in.wav", tmp_path / "x.safetensors", seen.append, storage_dtype="float16", key=key)
    np.testing.assert_allclose(seen, np.arange(1, 11) / 10)
    with safetensors.safe_open(tmp_path / "x.safetensors", framework="numpy") as file:
        kept = file.get_tensor("z")
    assert kept.dtype == np.float16
    sampled = codec.encode(audio, key=key).z
    np.testing.assert_array_equal(kept, sampled.astype(np.float16))
    assert np.abs(sampled - codec.encode(audio).z).max() > 0.1  # whose z are means


def test_latents_that_would_not_be_read_again_are_not_written(stereo, tmp_path):
    latents = stereo.encode(_noise(301, 2))
    for changes, message in (
        ({"sample_rate": 44100.5}, "sample_rate=44100.5 must be a whole number"),
        ({"hop_length": "8"}, "hop_length='8' must be a whole number"),
        ({"batch": 0}, "batch=0 must be a whole number"),
    ):
        with pytest.raises(DataError, match=message):
            dataclasses.replace(latents, **changes)
    for z in (latents.z[:, :0], latents.z.astype(np.float64), latents.z[0]):
        with pytest.raises(DataError, match=r"x.safetensors was not written \(z is float"):
            dataclasses.replace(latents, z=z).save(tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_and_leaves_nothing(stereo, tmp_path, full_disk):
    latents = stereo.encode(_noise(100_000, 2))
    with full_disk(50_000), pytest.raises(DataError, match=r"x.safetensors was not written: .*File too large"):
        latents.save(tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_latents_of_another_model_are_refused_unless_allowed(stereo):
    model, variables = _model()
    other = Codec(model, jax.tree.map(lambda x: 1.01 * x, variables), sample_rate=8000)
    latents = other.encode(_noise(300, 2))
    with pytest.raises(CheckpointError, match=f"fingerprint {other.fingerprint}, this one is {stereo.fingerprint}"):
        stereo.decode(latents)
    assert stereo.decode(latents, allow_other_model=True).shape == (300, 2)
    wide = Codec(*_model(latent_dim=5), sample_rate=8000).encode(_noise(300, 2))
    with pytest.raises(DataError, match="which does not fit this model"):
        stereo.decode(wide, allow_other_model=True)
    cut = dataclasses.replace(latents, z=latents.z[:, :-1], model=stereo.fingerprint)
    with pytest.raises(DataError, match="have 37 frames, but 300 samples need 38"):
        stereo.decode(cut)
    assert Codec(*_model(), sample_rate=8000).fingerprint == stereo.fingerprint


def test_files_without_latents_are_refused(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        Latents.load(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"nonsense" * 10)
    with pytest.raises(DataError, match="cannot be read as latents"):
        Latents.load(tmp_path / "x.safetensors")
    import safetensors.numpy

    safetensors.numpy.save_file({"z": np.zeros((1, 2, 3), np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(DataError, match="contains no latents"):
        Latents.load(tmp_path / "x.safetensors")
    bad = '{"format": 1, "model": "x", "hop_length": -8}'
    safetensors.numpy.save_file(
        {"z": np.zeros((1, 2, 3), np.float32)}, tmp_path / "x.safetensors", metadata={"audiovae_latents": bad}
    )
    for read in (Latents.load, Latents.describe):
        with pytest.raises(DataError, match="its metadata is damaged"):
            read(tmp_path / "x.safetensors")


def test_latents_are_described_without_their_values(stereo, tmp_path):
    latents = stereo.encode(_noise(999, 2), 11025)
    for dtype in ("float32", "bfloat16"):
        latents.save(tmp_path / "l.safetensors", dtype)
        loaded, described = Latents.load(tmp_path / "l.safetensors"), Latents.describe(tmp_path / "l.safetensors")
        assert described.z.shape == latents.z.shape
        assert (described.z.strides, described.z.dtype, described.z.any()) == ((0, 0, 0), np.float32, False)
        assert dataclasses.replace(described, z=None) == dataclasses.replace(loaded, z=None)


def test_latents_of_channels_that_the_model_does_not_give_are_refused(stereo):
    latents = stereo.encode(_noise(999, 2))
    with pytest.raises(DataError, match="have 5 channels, but this model decodes to 2"):
        stereo.decode(dataclasses.replace(latents, channels=5))


@pytest.mark.parametrize("rate", [8000, 11025])
def test_files_give_what_arrays_give(stereo, tmp_path, rate):
    audio = _noise(3000, 2)
    soundfile.write(tmp_path / "in.wav", audio, rate, subtype="FLOAT")
    expected = stereo.reconstruct(audio, rate)
    np.testing.assert_allclose(stereo.reconstruct(tmp_path / "in.wav"), expected, atol=1e-6)
    seen = []
    stereo.reconstruct_file(tmp_path / "in.wav", tmp_path / "out.wav", progress=seen.append)
    written, written_rate = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert written_rate == rate
    np.testing.assert_allclose(written, expected, atol=1e-6)
    assert seen[-1] == 1.0
    stereo.encode_file(tmp_path / "in.wav", tmp_path / "x.safetensors")
    stereo.decode_file(tmp_path / "x.safetensors", tmp_path / "again.flac")
    written, _ = soundfile.read(tmp_path / "again.flac", dtype="float32")
    np.testing.assert_allclose(written, np.clip(expected, -1, 1), atol=2e-7)


def test_a_file_that_breaks_off_leaves_nothing_behind(stereo, tmp_path):
    soundfile.write(tmp_path / "in.wav", _noise(3000, 2), 8000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"out.xyz: audio of the kind '.xyz' cannot be written"):
        stereo.reconstruct_file(tmp_path / "in.wav", tmp_path / "out.xyz")
    data = _noise(3000, 2)
    data[2500] = np.nan
    soundfile.write(tmp_path / "bad.wav", data, 8000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"bad.wav: contains NaN"):
        stereo.reconstruct_file(tmp_path / "bad.wav", tmp_path / "out.wav")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.wav", "in.wav"]


def test_silence_is_audio(stereo, tmp_path):
    soundfile.write(tmp_path / "in.wav", np.zeros((3000, 2), np.float32), 8000)
    assert stereo.reconstruct(tmp_path / "in.wav").shape == (3000, 2)


@pytest.mark.slow
def test_loading_reads_the_rate_or_warns_of_an_assumed_one(tmp_path):
    model, variables = _model()
    save_model(model, variables, tmp_path / "m", sample_rate=8000)
    assert Codec.load(tmp_path / "m").sample_rate == 8000
    with pytest.raises(CheckpointError, match="m: its sample rate is 8000 Hz, not sample_rate=16000"):
        Codec.load(tmp_path / "m", sample_rate=16000)
    with pytest.warns(UserWarning, match="contains no sample rate; 44100 Hz is assumed"):
        assert Codec.load(GOLDEN / "save_model.pt").sample_rate == 44100
    assert Codec.load(GOLDEN / "save_model.pt", sample_rate=16000).sample_rate == 16000
    assert Codec.load(GOLDEN / "lightning.ckpt", dtype="bfloat16").reconstruct(_noise(300, 2)).dtype == np.float32
