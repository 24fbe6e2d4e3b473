"""The command `encode`."""

import shutil
import types

import numpy as np
import pytest
from absl import flags
from conftest import random_variables

from audiovae_jax import AudioVAE, Latents, save_model
from audiovae_jax.commands import codec


@pytest.mark.slow
def test_samples_of_a_seed_are_each_files_own_and_the_same_again(audio_folder, tmp_path, monkeypatch):
    model = AudioVAE(base_channels=2, channel_mults=(1, 2), strides=(2, 4), latent_dim=3, dilations=(1,))
    save_model(model, random_variables(model), tmp_path / "model", sample_rate=44100)
    shutil.copy(audio_folder / "a.wav", audio_folder / "copy.wav")
    given = types.SimpleNamespace(
        seed=3, mix=True, storage_dtype="float32", overwrite=False, step=None, sample_rate=None, dtype=None,
        chunk_length=None, batch_size=None, allow_truncated=False,
    )  # fmt: skip
    monkeypatch.setattr(flags, "FLAGS", given)
    model, songs = str(tmp_path / "model"), str(audio_folder)
    codec.ENCODE.main(model, songs, str(tmp_path / "first"))
    codec.ENCODE.main(model, songs, str(tmp_path / "second"))
    codec.ENCODE.main(model, str(audio_folder / "a.wav"), str(tmp_path / "a.safetensors"))
    first, copy, second, alone = (
        np.asarray(Latents.load(tmp_path / name))
        for name in ("first/a.safetensors", "first/copy.safetensors", "second/a.safetensors", "a.safetensors")
    )
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, alone)
    assert np.abs(first - copy).mean() > 1e-3
