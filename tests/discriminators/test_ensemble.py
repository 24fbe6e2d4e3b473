import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import applied, initialised

from audiovae_jax import EnCodecDiscriminator, discriminators
from audiovae_jax.models.layers import count_parameters
from audiovae_jax.ops import scheduling


def _shapes(discriminator, audio):
    def run():
        variables = discriminator.init(jax.random.key(0), audio)
        return variables["params"], discriminator.apply(variables, audio)

    return jax.eval_shape(run)


def test_the_default_ensemble_has_torchs_parameter_count_and_order():
    params, (logits, feature_maps) = _shapes(EnCodecDiscriminator(use_mel_stft=True), jnp.zeros((3, 8192, 2)))
    parts = {name: count_parameters(part) for name, part in params.items()}
    assert sum(parts.values()) - parts["mel_stft"] == 50_396_058
    # MS-STFT channel by channel, three scales, five periods, five mel resolutions.
    assert [len(maps) for maps in feature_maps] == [4] * 10 + [6] * 3 + [5] * 5 + [4] * 5
    assert len(logits) == 23
    frames = [x.shape for x in logits[:10]]
    assert frames[:5] == frames[5:]
    assert all(x.shape[0] == 3 for x in jax.tree.leaves((logits, feature_maps)))


@pytest.mark.slow
def test_stereo_channels_are_processed_separately_by_the_same_weights():
    discriminator = discriminators.MultiScaleSTFTDiscriminator(2, n_ffts=(64, 32))
    left, right = np.random.default_rng(0).standard_normal((2, 1, 256, 1)).astype(np.float32)
    stereo = jnp.concatenate([left, right], axis=-1)
    variables = initialised(discriminator, stereo)
    logits, _ = applied(discriminator, variables, stereo)
    alone, _ = applied(discriminator.clone(in_channels=1), variables, jnp.asarray(right))
    for both, one in zip(logits[2:], alone, strict=True):
        np.testing.assert_allclose(both, one, atol=1e-5)


def test_the_ensemble_is_its_parts():
    audio = jnp.asarray(np.random.default_rng(0).standard_normal((1, 512, 2)), jnp.float32)
    whole = EnCodecDiscriminator(2, n_ffts=(64,), use_msd=False, mpd_periods=(3,), mpd_channels=(2, 4))
    variables = initialised(whole, audio)
    logits, _ = applied(whole, variables, audio)
    part = discriminators.MultiPeriodDiscriminator((3,), channels=(2, 4))
    alone, _ = applied(part, {"params": variables["params"]["mpd"]}, audio)
    np.testing.assert_array_equal(logits[-1], alone[0])


def test_wrong_channels_and_bands_are_named():
    with pytest.raises(ValueError, match=r"needs audio \[B, T, 2\], not \(1, 64, 1\)"):
        _shapes(discriminators.MultiPeriodDiscriminator(), jnp.zeros((1, 64, 1)))
    band = discriminators.BandSplitDiscriminator(64, 16, ((0, 99),))
    with pytest.raises(ValueError, match="outside the 33 bins"):
        _shapes(band, jnp.zeros((1, 256, 1)))


@pytest.mark.slow
def test_sub_discriminators_are_computed_in_turn_unless_their_feature_maps_are_known(monkeypatch):
    waited = []
    monkeypatch.setattr(scheduling, "after", lambda x, earlier: waited.append(earlier.shape) or x)
    ensemble = EnCodecDiscriminator(use_mel_stft=True)
    band = discriminators.BandSplitDiscriminator()

    def output(discriminator, audio, known=None):
        def run(audio):
            variables = discriminator.init(jax.random.key(0), audio)
            waited.clear()
            return discriminator.apply(variables, audio, known, method="discriminate")

        return jax.eval_shape(run, audio)

    logits, feature_maps = output(ensemble, jnp.zeros((1, 8192, 2)))
    assert len(waited) == len(logits) - 1 == 17
    shapes = [x.shape for x in jax.tree.leaves(logits)]
    assert waited == shapes[:-1]  # each waits for the logits before it
    output(ensemble, jnp.zeros((1, 8192, 2)), jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), feature_maps))
    assert not waited
    output(band, jnp.zeros((1, 8192, 1)))
    assert len(waited) == 3


@pytest.mark.parametrize("name", [name for name, value in vars(discriminators).items() if isinstance(value, type)])
def test_discriminators_are_equal_however_their_type_is_given(name):
    cls = getattr(discriminators, name)
    assert len({cls(), cls(dtype="float32"), cls(dtype=np.dtype("float32")), cls(dtype=jnp.float32)}) == 1
    assert cls(dtype="bfloat16") == cls(dtype=jnp.bfloat16) != cls()
