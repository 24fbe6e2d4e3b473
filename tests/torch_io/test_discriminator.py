"""Discriminators in torch files: their outputs, and properties that shapes do not determine."""

import golden_configs as names
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from conftest import GOLDEN, applied

from audiovae_jax import EnCodecDiscriminator, discriminators
from audiovae_jax.errors import CheckpointError
from audiovae_jax.torch_io import import_discriminator, layout, read_checkpoint


def test_the_discriminator_gives_torchs_numbers():
    io = np.load(GOLDEN / "checkpoints.npz")
    discriminator = EnCodecDiscriminator(**names.MICRO_DISCRIMINATOR)
    params = import_discriminator(read_checkpoint(GOLDEN / "lightning.ckpt")["state_dict"], discriminator)
    logits, _ = applied(discriminator, {"params": params}, jnp.asarray(np.moveaxis(io["audio"], 1, -1)))
    for i, ours in enumerate(logits):
        ours, expected = np.moveaxis(np.asarray(ours), -1, 1), io[f"logits_{i}"]
        ours = ours if ours.shape == expected.shape else np.swapaxes(ours, -1, -2)
        np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=1e-4)


def test_weights_of_another_spectrogram_are_refused():
    """Shapes do not determine FFT lengths or mel bands, but the constants next to the weights do."""
    state = read_checkpoint(GOLDEN / "lightning.ckpt")["state_dict"]
    other = EnCodecDiscriminator(**{**names.MICRO_DISCRIMINATOR, "n_ffts": (128,)})
    with pytest.raises(CheckpointError, match=r"msstft.discriminators.0.window of shape \(64,\) .* n_fft=128"):
        import_discriminator(state, other)
    other = EnCodecDiscriminator(**names.MICRO_DISCRIMINATOR, mel_stft_sample_rate=48000)
    with pytest.raises(CheckpointError, match=r"mel_scale.fb of shape \(65, 6\) .* sample_rate=48000"):
        import_discriminator(state, other)
    other = EnCodecDiscriminator(**{**names.MICRO_DISCRIMINATOR, "mpd_periods": (2, 3)})
    with pytest.raises(CheckpointError, match="missing: mpd.discriminators.1.convs.0.bias"):
        import_discriminator(state, other)


def test_a_single_part_of_the_ensemble_is_imported():
    state = read_checkpoint(GOLDEN / "lightning.ckpt")["state_dict"]
    prefix = "discriminator.msstft."
    alone = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    part = discriminators.MultiScaleSTFTDiscriminator(1, n_ffts=(64,))
    params = import_discriminator(alone, part)
    whole = import_discriminator(state, EnCodecDiscriminator(**names.MICRO_DISCRIMINATOR))
    jax.tree.map(np.testing.assert_array_equal, params, whole["msstft"])


def test_half_precision_runs_round_their_constants_too():
    state = read_checkpoint(GOLDEN / "lightning.ckpt")["state_dict"]
    discriminator = EnCodecDiscriminator(**names.MICRO_DISCRIMINATOR)
    for kind in (np.float16, ml_dtypes.bfloat16):
        rounded = {key: value.astype(kind) for key, value in state.items()}
        params = import_discriminator(rounded, discriminator)
        bias = rounded["discriminator.msstft.discriminators.0.conv_post.bias"].astype(np.float32)
        np.testing.assert_array_equal(params["msstft"]["discriminators_0"]["conv_post"]["bias"], bias)
        other = EnCodecDiscriminator(**names.MICRO_DISCRIMINATOR, mel_stft_sample_rate=48000)
        with pytest.raises(CheckpointError, match="sample_rate=48000"):
            import_discriminator(rounded, other)


def test_the_way_back_to_torch_gives_the_same_tensors():
    state = read_checkpoint(GOLDEN / "lightning.ckpt")["state_dict"]
    params = import_discriminator(state, EnCodecDiscriminator(**names.MICRO_DISCRIMINATOR))
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        path = tuple(part.key for part in path)
        tensor = state[f"discriminator.{layout.torch_key(path)}"]
        back = layout.to_torch(path, np.asarray(array))
        assert back.shape == tensor.shape[: back.ndim]  # the others are 1
        np.testing.assert_array_equal(back.ravel(), tensor.ravel())
