import numpy as np
import pytest
import soundfile
from conftest import random_variables

from audiovae_jax import AudioVAE, Codec
from audiovae_jax.data.audio import stream
from audiovae_jax.errors import ConfigError, DataError
from audiovae_jax.evaluation import systems
from audiovae_jax.evaluation.latents import LatentStatistics
from audiovae_jax.losses import kl_divergence
from audiovae_jax.models.audio_vae import Posterior


def _music(seconds=2.0, rate=44100, channels=2):
    time = np.arange(int(seconds * rate)) / rate
    tones = [0.1 * np.sin(2 * np.pi * f * time * (1 + 0.01 * np.sin(3 * time))) for f in (220, 330, 550)]
    return np.stack([sum(tones[: 2 + c]) for c in range(channels)], axis=1).astype(np.float32)


def _quiet(share):
    pass


@pytest.mark.parametrize("tool", ["ffmpeg", "libsndfile"])
@pytest.mark.parametrize(
    ("name", "rate"), [("opus64", 44100), ("opus24", 48000), ("mp3_128", 44100), ("mp3_64", 22050)]
)
def test_codecs_give_audio_of_the_same_length_in_its_place(name, rate, tool, tmp_path, monkeypatch):
    if tool == "libsndfile":
        monkeypatch.setattr(systems.shutil, "which", lambda name: None)
    try:
        codec = systems.LossyCodec(name)
    except ConfigError as error:
        pytest.skip(str(error))
    if tool not in codec.description:
        pytest.skip("no ffmpeg with this encoder here")
    audio = _music(rate=rate)
    shares = []
    made = codec.reconstruct(stream.of_array(audio, rate), tmp_path / "made.wav", shares.append)
    decoded, decoded_rate = soundfile.read(tmp_path / "made.wav", dtype="float32")
    assert (decoded.shape, decoded_rate) == (audio.shape, rate)
    lags = np.arange(-30, 31)
    inner = slice(4000, 40_000)
    errors = [np.square(np.roll(decoded, -lag, axis=0)[inner] - audio[inner]).sum() for lag in lags]
    assert abs(lags[np.argmin(errors)]) <= 2  # no delay remains; at low rates the phase is not exact to the sample
    assert 10 * np.log10(np.square(audio[inner]).sum() / min(errors)) > 10
    assert made.columns["bits_per_second"] == pytest.approx(
        1000 * int(name.removeprefix("mp3_").removeprefix("opus")), rel=0.7
    )
    assert shares[-1] == pytest.approx(1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.wav"]


def test_names_of_codecs_and_models(monkeypatch, tmp_path):
    for name in ("opus", "opus3", "opus900", "aac64"):
        with pytest.raises(ConfigError, match="opus24, opus64 or mp3_128"):
            systems.baselines([name])
    monkeypatch.setattr(systems.shutil, "which", lambda name: None)
    monkeypatch.setattr(systems.soundfile, "available_subtypes", lambda format: {})
    found, missing = systems.baselines(["opus24"])
    assert not found
    assert "there is neither an ffmpeg nor a libsndfile with libopus; this system is left out" in missing[0]
    (tmp_path / "epoch=9.ckpt").touch()
    monkeypatch.chdir(tmp_path)
    assert systems.named_models(["runs/tiny", "ours=b/model.pt", "epoch=9.ckpt"]) == [
        ("tiny", "runs/tiny"), ("ours", "b/model.pt"), ("epoch=9", "epoch=9.ckpt"),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="two models have the name 'tiny'"):
        systems.named_models(["runs/tiny", "other/tiny"])


def test_more_than_two_channels_are_no_matter_for_a_baseline(tmp_path):
    audio = stream.of_array(np.zeros((100, 6), np.float32), 48000)
    with pytest.raises(DataError, match="6 channels"):
        systems.LossyCodec("mp3_128").reconstruct(audio, tmp_path / "made.wav", _quiet)


def test_a_model_reconstructs_as_its_codec_does(tmp_path):
    model = AudioVAE(base_channels=2, channel_mults=(1, 2), strides=(2, 4), latent_dim=3, dilations=(1,))
    codec = Codec(model, random_variables(model), sample_rate=8000)
    audio = _music(rate=8000)
    made = systems.Model("m", codec, "m").reconstruct(stream.of_array(audio, 8000), tmp_path / "made.wav", _quiet)
    decoded, _ = soundfile.read(tmp_path / "made.wav", dtype="float32")
    np.testing.assert_allclose(decoded, codec.reconstruct(audio, 8000), atol=1e-6)
    assert made.seconds > 0
    assert len(made.latents["std"]) == 3
    # The divergence over time, by the loss's own function.
    (posterior,) = list(codec.stream(stream.of_array(audio, 8000)).posteriors)
    total = float(kl_divergence(mean=posterior.mean.swapaxes(0, 1), logvar=posterior.logvar.swapaxes(0, 1)))
    assert made.columns["bits_per_second"] == pytest.approx(total / np.log(2) / 2.0, rel=1e-4)


def test_a_model_without_a_posterior_has_no_information_to_report(tmp_path):
    size = {"base_channels": 2, "channel_mults": (1,), "strides": (2,), "latent_dim": 3, "dilations": (1,)}
    model = AudioVAE(**size, posterior="none")
    source = stream.of_array(_music(seconds=0.2, rate=8000), 8000)
    codec = Codec(model, random_variables(model), sample_rate=8000)
    made = systems.Model("m", codec, "m").reconstruct(source, tmp_path / "made.wav", _quiet)
    assert set(made.columns) == {"active_channels", "latent_mean_abs", "latent_std"}
    assert set(made.latents) == {"variance_of_mean", "mean", "std"}


def test_latent_statistics_in_closed_form():
    rng = np.random.default_rng(0)
    statistics = LatentStatistics(3)
    for _ in range(4):
        mean = rng.standard_normal((5000, 1, 3)) * [2, 1, 0]
        statistics.add(Posterior((mean - 0.5) / 2, mean, np.broadcast_to(np.log([0.25, 1, 1]), mean.shape)))
    columns = statistics.columns(seconds=100.0)
    # (m^2 + s^2 - 1 - log s^2) / 2, with m^2 of 4, 1 and 0.
    expected = (4 + 0.25 - 1 - np.log(0.25)) / 2 + 1 / 2
    assert columns["kl_nats_per_frame"] == pytest.approx(expected, rel=0.02)
    assert columns["bits_per_second"] == pytest.approx(expected / np.log(2) * 200, rel=0.02)
    assert columns["active_channels"] == 2
    assert statistics.channels()["mean"] == pytest.approx([-0.25] * 3, abs=0.02)
    assert statistics.channels()["std"] == pytest.approx([1, 0.5, 0], abs=0.02)
