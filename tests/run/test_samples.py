import jax
import numpy as np
import pytest
from conftest import applied, random_variables

from audiovae_jax import AudioVAE
from audiovae_jax.data.feeding import pipeline
from audiovae_jax.distributed import mesh
from audiovae_jax.run.samples import Sample, Samples

MODEL = AudioVAE(base_channels=4, channel_mults=(1,), strides=(8,), latent_dim=4, dilations=(1,))


@pytest.fixture
def everywhere():
    """Replicate variables over all devices, as in a run."""
    return jax.device_put(random_variables(MODEL), mesh.replicated(mesh.make_mesh()))


def _samples(config, root=None, **keys):
    config.data.root, config.data.index = root, False
    config.data.update(keys)
    data = pipeline.open_data(config.data, batch_size=4, seed=0)
    return Samples(data.samples, config.data.num_samples, MODEL)


def test_a_sample_is_a_stretch_of_a_file_and_what_one_pass_makes_of_it(micro_config, audio_folder, everywhere):
    samples = _samples(micro_config, str(audio_folder), num_samples=2, sample_seconds=0.3)
    first, second = samples.reconstruct(everywhere)
    assert len(first.original) == len(first.reconstruction) == 13230
    # Both are from the only validation file, at different positions.
    assert first.name.partition(" at ")[0] == second.name.partition(" at ")[0]
    assert np.abs(first.original - second.original).max() > 0.1
    whole = applied(MODEL, everywhere, first.original[None, : 13230 // 8 * 8], deterministic=True).reconstruction[0]
    np.testing.assert_allclose(first.reconstruction[:13000], whole[:13000], atol=1e-5)
    again, _ = samples.reconstruct(everywhere)
    np.testing.assert_array_equal(again.reconstruction, first.reconstruction)


@pytest.mark.parametrize("padding", ["zero", "loop"])
def test_a_file_that_is_shorter_is_heard_whole_and_not_filled_up(micro_config, audio_folder, everywhere, padding):
    (sample,) = _samples(micro_config, str(audio_folder), sample_seconds=5.0, padding=padding).reconstruct(everywhere)
    assert sample.original.shape == sample.reconstruction.shape == (22050, 2)
    assert np.abs(sample.original[-100:]).max() > 0.01


def test_the_generators_music_is_as_long_as_it_is_wanted(micro_config, everywhere):
    (sample,) = _samples(micro_config, sample_seconds=0.25).reconstruct(everywhere)
    assert len(sample.original) == 11025
    assert sample.name == "the built-in generator"


def test_the_title_has_step_file_and_ratios():
    original = np.random.default_rng(0).standard_normal((4000, 2)).astype(np.float32)
    noise = np.random.default_rng(1).standard_normal((4000, 2)).astype(np.float32)
    title = Sample("songs/a.wav at 1.00 s", original, original + 0.1 * noise).title(12000)
    assert title.startswith("step 12,000: songs/a.wav at 1.00 s\nSI-SDR 20.")
    assert title.endswith(" dB")
    assert len(Sample(100 * "long/", original, original).title(1).split("\n")[0]) < 90
    silence = np.zeros((100, 1), np.float32)
    assert Sample("s", silence, silence).title(0) == "step 0: s\nSI-SDR silent, SNR silent"
