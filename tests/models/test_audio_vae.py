import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import KINDS, applied, initialised, random_variables

from audiovae_jax import AudioVAE
from audiovae_jax.models.layers import count_parameters
from audiovae_jax.training.optimizer import FROZEN_ENCODER
from audiovae_jax.training.state import trainable_params

SMALL = {"base_channels": 4, "channel_mults": (1, 2), "strides": (2, 4), "latent_dim": 3, "dilations": (1, 3)}


def _inputs(model, length=64):
    audio = jax.random.normal(jax.random.key(7), (2, length, model.in_channels))
    width = model.latent_dim
    uncalibrated = {"latent_mean": jnp.zeros(width), "latent_std": jnp.ones(width)}
    return audio, {**random_variables(model), "latent_statistics": uncalibrated}


def test_the_published_model_has_torchs_parameter_count():
    model = AudioVAE(base_channels=128, strides=(2, 4, 4, 8))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 4096, 2)), deterministic=True))
    assert count_parameters(shapes) == 37_737_220
    assert model.hop_length == 256


@pytest.mark.slow
@pytest.mark.parametrize(("strides", "count"), [((2, 4, 4, 8, 8), 156_077_696), ((2, 4, 4, 6, 10), 168_660_608)])
def test_stable_audio_and_ace_step_have_their_parameter_counts(strides, count):
    model = AudioVAE(base_channels=128, channel_mults=(1, 2, 4, 8, 16), strides=strides, **KINDS["oobleck"])
    folded = model.clone(weight_norm=False)
    assert count_parameters(folded.shapes()["params"]) == count
    assert len(jax.tree.leaves(model.shapes()["params"])) == 365


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_folding_changes_no_kinds_output(kind):
    model = AudioVAE(**{**SMALL, "strides": (2, 3), **KINDS[kind]})
    variables = random_variables(model)
    audio = jax.random.normal(jax.random.key(7), (2, 67, model.in_channels))
    expected = applied(model, variables, audio, deterministic=True)
    plain, folded = model.folded(variables)
    for a, b in zip(applied(plain, folded, audio, deterministic=True), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert expected.reconstruction.shape == audio.shape
    bare = applied(model.clone(final_tanh=False), variables, audio, deterministic=True).reconstruction
    np.testing.assert_allclose(np.tanh(bare) if model.final_tanh else bare, expected.reconstruction, atol=1e-6)


@pytest.mark.slow
def test_softplus_scales_are_standard_deviations():
    model = AudioVAE(**SMALL, **KINDS["oobleck"])
    audio, variables = _inputs(model)
    output = applied(model, variables, audio, noise=jnp.ones((2, 8, 3)))
    raw = model.apply(variables, audio, method=lambda module, audio: module.encoder(audio, None))
    std = np.log1p(np.exp(np.asarray(raw[..., 3:], np.float64))) + 1e-4
    np.testing.assert_allclose(output.mean, raw[..., :3], atol=1e-6)
    np.testing.assert_allclose(output.z - output.mean, std, atol=1e-5)
    np.testing.assert_allclose(output.logvar, 2 * np.log(std), atol=1e-5)


def test_an_autoencoder_without_posterior_adds_no_noise():
    model = AudioVAE(**{**SMALL, **KINDS["dac"]})
    audio, variables = _inputs(model)
    output = applied(model, variables, audio, noise=jnp.full((2, 8, 3), 1e3))
    np.testing.assert_array_equal(output.z, output.mean)
    np.testing.assert_array_equal(output.mean + 1e3 * jnp.exp(output.logvar / 2), output.mean)
    assert variables["params"]["encoder"]["final_conv"]["v"].shape[-1] == 3


@pytest.mark.parametrize("length", [59, 60, 61, 74, 75, 76])
def test_odd_strides_that_are_padded_more_are_those_of_dac(length):
    model = AudioVAE(**{**SMALL, "strides": (3, 5), **KINDS["oobleck"]})
    frames = ((length + 1) // 3 + 1) // 5
    assert model.frames(length) == frames
    assert model.decoded_length(frames) == (frames * 5 - 1) * 3 - 1
    audio = jax.ShapeDtypeStruct((1, length, 2), jnp.float32)
    output = jax.eval_shape(lambda v, x: model.apply(v, x, deterministic=True), model.shapes(), audio)
    assert output.mean.shape == (1, frames, 3)
    assert output.reconstruction.shape == (1, length, 2)


@pytest.mark.slow
@pytest.mark.parametrize("config", [{}, {"in_channels": 1}, {"strides": (3, 5)}, {"kernel_size": 3}, {"dilations": ()}])
@pytest.mark.parametrize("length", [33, 64, 100])
def test_any_configuration_and_length_keeps_the_length(config, length):
    model = AudioVAE(**{**SMALL, **config})
    audio, variables = _inputs(model, length)
    output = applied(model, variables, audio, deterministic=True)
    assert output.reconstruction.shape == audio.shape
    assert output.mean.shape == (2, model.frames(length), 3)
    assert np.isfinite(output.reconstruction).all()


def test_sampling_uses_the_rng_stream_or_the_given_noise():
    model = AudioVAE(**SMALL)
    audio, variables = _inputs(model)
    noise = jax.random.normal(jax.random.key(3), (2, 8, 3))
    given = applied(model, variables, audio, noise=noise)
    np.testing.assert_allclose(given.z, given.mean + noise * jnp.exp(given.logvar / 2), atol=1e-5)
    first, again, other = (
        applied(model, variables, audio, rngs={"sample": jax.random.key(seed)}).z for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_latent_statistics_scale_z_and_cancel_in_the_reconstruction():
    model = AudioVAE(**SMALL)
    audio, variables = _inputs(model)
    plain = applied(model, variables, audio, deterministic=True)
    statistics = {"latent_mean": jnp.array([1.0, -2.0, 0.5]), "latent_std": jnp.array([2.0, 0.5, 3.0])}
    calibrated = applied(model, {**variables, "latent_statistics": statistics}, audio, deterministic=True)
    np.testing.assert_allclose(calibrated.z * statistics["latent_std"] + statistics["latent_mean"], plain.z, atol=1e-5)
    np.testing.assert_allclose(calibrated.reconstruction, plain.reconstruction, atol=1e-5)
    assert set(variables["latent_statistics"]) == {"latent_mean", "latent_std"}


def test_logvar_is_clipped():
    model = AudioVAE(**SMALL)
    audio, variables = _inputs(model)
    flat = flax.traverse_util.flatten_dict(variables["params"])
    flat[("encoder", "final_conv", "bias")] = jnp.full((6,), 1e3)
    output = applied(model, {**variables, "params": flax.traverse_util.unflatten_dict(flat)}, audio, deterministic=True)
    assert output.logvar.max() == 20


@pytest.mark.slow
def test_a_frozen_encoder_gets_no_gradient_and_the_decoder_does():
    model = AudioVAE(**SMALL, encoder_frozen=True)
    audio, variables = _inputs(model)

    def loss(params):
        return jnp.sum(model.apply({**variables, "params": params}, audio, deterministic=True).reconstruction ** 2)

    grads = jax.jit(jax.grad(loss))(variables["params"])
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads["encoder"]))
    assert any((leaf != 0).any() for leaf in jax.tree.leaves(grads["decoder"]))
    trainable = trainable_params(variables["params"], FROZEN_ENCODER)
    assert set(trainable) == {"decoder"}


@pytest.mark.slow
def test_remat_changes_neither_parameters_nor_gradients():
    audio = jax.random.normal(jax.random.key(1), (1, 64, 2))
    plain = AudioVAE(base_channels=4, channel_mults=(1,), strides=(4,), latent_dim=4, dilations=(1,))
    variables = random_variables(plain)

    def gradient(model):
        def loss(params):
            output = model.apply({**variables, "params": params}, audio, deterministic=True)
            return jnp.sum(jnp.square(output.reconstruction))

        return jax.jit(jax.grad(loss))

    saving = plain.clone(remat=True)
    assert jax.tree.structure(saving.shapes()) == jax.tree.structure(plain.shapes())
    found, expected = (gradient(model)(variables["params"]) for model in (saving, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
    convolutions = [
        gradient(model).lower(variables["params"]).as_text().count("stablehlo.convolution") for model in (saving, plain)
    ]
    assert convolutions[0] > convolutions[1]


@pytest.mark.slow
def test_bfloat16_returns_float32_near_the_full_precision():
    model = AudioVAE(**SMALL)
    audio = jax.random.normal(jax.random.key(7), (2, 64, 2))
    variables = initialised(model, audio, deterministic=True)
    full = applied(model, variables, audio, deterministic=True)
    half = applied(model.clone(dtype="bfloat16"), variables, audio, deterministic=True)
    assert half.reconstruction.dtype == half.mean.dtype == jnp.float32
    assert 0 < np.abs(half.mean - full.mean).max() < 0.05


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"strides": (2, 4, 8)}, "channel_mults has 2 entries and strides 3"),
        ({"kernel_size": 4}, "use an odd kernel_size"),
        ({"latent_dim": 0}, "latent_dim=0 must be positive"),
        ({"decoder_base_channels": 0}, "decoder_base_channels=0 must be positive"),
        ({"activation": "relu"}, "activation='relu' is unknown; choose from snake, snake_beta, elu"),
        ({"posterior": "gauss"}, "posterior='gauss' is unknown; choose from logvar, softplus, none"),
        ({"padding": "even"}, "padding='even' is unknown; choose from floor, ceil, causal"),
    ],
)
def test_impossible_architectures_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        AudioVAE(**{**SMALL, **config})


def test_shapes_may_be_changed_by_the_caller():
    model = AudioVAE(**SMALL)
    model.shapes()["params"].clear()
    assert model.shapes()["params"]


def test_wrong_audio_is_refused_with_the_shape():
    model = AudioVAE(**SMALL)
    _, variables = _inputs(model)
    with pytest.raises(ValueError, match=r"audio must be \[B, T, 2\], not \(2, 64, 1\)"):
        model.apply(variables, jnp.zeros((2, 64, 1)), deterministic=True)
    with pytest.raises(ValueError, match="2 samples are too short to encode"):
        model.apply(variables, jnp.zeros((1, 2, 2)), deterministic=True)
    with pytest.raises(ValueError, match=r"z must be \[B, frames, 3\]"):
        model.apply(variables, jnp.zeros((1, 8, 4)), method="decode")


@pytest.mark.parametrize("padding", ["floor", "ceil", "causal"])
@pytest.mark.parametrize("strides", [(2, 3), (3, 5, 2), (4,), (3, 3)])
def test_the_shortest_audio_gives_one_frame(strides, padding):
    kind = {"strides": strides, "channel_mults": (1,) * len(strides), "padding": padding}
    model = AudioVAE(**{**SMALL, **kind})
    assert model.frames(model.min_length) == 1
    assert model.frames(model.min_length - 1) == 0


def test_models_are_equal_however_their_type_is_given():
    given = ("float32", jnp.float32, np.float32, np.dtype("float32"))
    models = {AudioVAE(**SMALL, dtype=dtype) for dtype in given} | {AudioVAE(**SMALL)}
    assert len(models) == 1
    assert AudioVAE(**SMALL, dtype="bfloat16") == AudioVAE(**SMALL, dtype=jnp.bfloat16) not in models
    with pytest.raises(ValueError, match="dtype='bf16' is not a dtype; use float32 or bfloat16"):
        AudioVAE(dtype="bf16")
