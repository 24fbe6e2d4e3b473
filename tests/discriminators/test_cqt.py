import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import applied, initialised

from audiovae_jax import EnCodecDiscriminator, discriminators
from audiovae_jax.training import contract

SMALL = {"filters": 2, "bins_per_octave": (6,), "hop_lengths": (32,), "octaves": 2, "f_min": 1000.0}


@pytest.mark.slow
def test_the_cqt_discriminator_keeps_the_contract():
    contract.check_discriminator(discriminators.MultiScaleSubBandCQTDiscriminator(**SMALL), length=512)


def test_shapes_are_those_of_the_transforms():
    discriminator = discriminators.MultiScaleSubBandCQTDiscriminator()

    def run():
        audio = jnp.zeros((3, 8192, 2))
        return discriminator.apply(discriminator.init(jax.random.key(0), audio), audio)

    logits, feature_maps = jax.eval_shape(run)
    assert [maps[0].shape for maps in feature_maps] == [(3, 17, 216, 32), (3, 33, 324, 32), (3, 33, 432, 32)]
    assert [maps[-1].shape[1:] for maps in feature_maps] == [(3, 216, 128), (5, 324, 128), (5, 432, 128)]
    assert [x.shape for x in logits] == [(3, 3, 216, 1), (3, 5, 324, 1), (3, 5, 432, 1)]


@pytest.mark.slow
def test_it_is_a_part_of_the_ensemble():
    audio = jnp.asarray(np.random.default_rng(0).standard_normal((1, 512, 2)), jnp.float32)
    options = {f"cqt_{name}": value for name, value in SMALL.items()}
    whole = EnCodecDiscriminator(2, n_ffts=(64,), use_msd=False, use_mpd=False, use_cqt=True, **options)
    variables = initialised(whole, audio)
    logits, _ = applied(whole, variables, audio)
    part = discriminators.MultiScaleSubBandCQTDiscriminator(**SMALL)
    alone, _ = applied(part, {"params": variables["params"]["cqt"]}, audio)
    for ours, theirs in zip(logits[-1:], alone, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_lists_of_other_lengths_are_named():
    discriminator = discriminators.MultiScaleSubBandCQTDiscriminator(bins_per_octave=(12,))
    with pytest.raises(ValueError, match="one hop_length per bins_per_octave is needed, but there are 3 for 1"):
        jax.eval_shape(discriminator.init, jax.random.key(0), jnp.zeros((1, 8192, 2)))
