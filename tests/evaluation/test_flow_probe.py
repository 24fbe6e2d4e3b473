import functools

import numpy as np
import pytest
from conftest import random_variables

from audiovae_jax import AudioVAE
from audiovae_jax.data.audio import audio_file
from audiovae_jax.data.sets.catalog import Track
from audiovae_jax.errors import ConfigError, DataError
from audiovae_jax.evaluation import flow_probe
from audiovae_jax.inference.codec import Codec


def _noise(seed, count=20, frames=40, width=4):
    return list(np.random.default_rng(seed).standard_normal((count, frames, width)).astype(np.float32))


def _structured(seed):
    """Latents that repeat one random number over time and channels, each with its own shift, scale and noise."""
    held = [excerpt[:1, :1] + 0.1 * excerpt for excerpt in _noise(seed, count=60)]
    return [excerpt * np.float32([1, 10, 0.1, 3]) + np.float32([0, 5, -5, 1]) for excerpt in held]


_CROP = flow_probe.CropShape(tokens=8, frames_per_token=2, latent_dim=4)
_probe = functools.partial(flow_probe.probe, crop=_CROP)


@pytest.mark.slow
def test_white_noise_has_the_closed_form_loss_whatever_its_scale():
    found = _probe([3 * z + 7 for z in _noise(0)], [3 * z + 7 for z in _noise(1)], steps=5)
    assert found.independent_loss == pytest.approx(np.pi / 2, abs=0.03)
    assert found.loss == pytest.approx(np.pi / 2, abs=0.03)
    assert found.relative_loss == pytest.approx(1, abs=0.02)
    assert 0 < found.standard_error < 0.02


@pytest.mark.slow
def test_structured_latents_have_a_lower_loss_that_falls_and_is_repeatable():
    train, validation = _structured(0), _structured(1)
    found = _probe(train, validation, steps=40)
    assert found.relative_loss < 0.8
    assert found.training_losses[-1] < 0.8 * found.training_losses[0]
    assert found.relative_standard_error < 0.02
    assert 1e6 < found.parameters < 2e6
    assert _probe(train, validation, steps=40) == found
    assert _probe(_noise(0), _noise(1), steps=40).relative_loss == pytest.approx(1, abs=0.02)
    other = _probe(train, validation, steps=1, seed=1)
    assert (other.independent_loss, other.loss != found.loss) == (found.independent_loss, True)
    with pytest.raises(DataError, match="no validation file has 42 latent frames"):
        _probe([np.concatenate(train)], validation, steps=1, crop=_CROP._replace(tokens=21))


def test_the_middle_of_each_file_is_encoded_and_bad_files_are_skipped(audio_folder, monkeypatch):
    monkeypatch.setattr(flow_probe, "EXCERPT_SECONDS", 0.25)
    model = AudioVAE(base_channels=2, channel_mults=(1,), strides=(8,), latent_dim=3, dilations=(1,))
    codec = Codec(model, random_variables(model), sample_rate=44100)
    tracks = [Track(name, audio_file.probe(audio_folder / name)) for name in ("a.wav", "c.ogg")]
    (audio_folder / "c.ogg").write_bytes(b"nonsense")
    found, ((skipped, _),) = flow_probe.encode(codec, tracks)
    assert (list(found), skipped) == (["a.wav"], "c.ogg")
    (z,) = found["a.wav"]
    start = (22050 - 11025) // 2
    whole = tracks[0].audio.read(start, 11025)
    np.testing.assert_allclose(z, codec.encode(whole, 44100).z[0], atol=1e-5)
    assert flow_probe.crop_shape(codec, 1.0) == (50, 110, 3)  # 5512.5 frames per second
    with pytest.raises(ConfigError, match="--seconds=0.01 is too short; use 0.04 or more"):
        flow_probe.crop_shape(codec, 0.01)
