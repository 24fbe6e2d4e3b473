"""Chunked inference equals a single pass for any chunks; receptive fields agree with gradients."""

import jax
import numpy as np
import pytest
from conftest import KINDS, applied, random_variables

from audiovae_jax import AudioVAE
from audiovae_jax.errors import DataError
from audiovae_jax.inference import chunked as chunked_module
from audiovae_jax.inference.chunked import ChunkedModel, Sliding
from audiovae_jax.models.receptive_field import decoder_context, encoder_context

CONFIGS = {
    "odd strides": {"base_channels": 3, "channel_mults": (1, 2), "strides": (3, 5), "latent_dim": 3},
    "mixed": {"base_channels": 3, "channel_mults": (1, 2, 1), "strides": (2, 3, 4), "latent_dim": 2, "kernel_size": 5,
              "dilations": (1, 2)},
    "mono, even kernel": {"in_channels": 1, "base_channels": 3, "channel_mults": (1, 1), "strides": (2, 4),
                          "latent_dim": 3, "kernel_size": 4, "dilations": (2,)},
    **{kind: {"base_channels": 3, "channel_mults": (1, 2), "strides": strides, "latent_dim": 3, **KINDS[kind]}
       for kind, strides in (("oobleck", (3, 5)), ("dac", (5, 3)), ("dacvae", (2, 8)))},
}  # fmt: skip
LENGTHS = (1, 7, "hop-1", "hop", "hop+1", 1003)


# One model by default: each compiles many programs.
MODELS = ["odd strides", *(pytest.param(name, marks=pytest.mark.slow) for name in list(CONFIGS)[1:])]


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    model = AudioVAE(**CONFIGS[request.param])
    return model, random_variables(model)  # with biases and statistics that make every padding visible


@pytest.mark.slow
def test_contexts_are_what_gradients_say(model):
    """No frame is missing, and the encoder's context is less than a hop too wide."""
    model, variables = model
    hop, frame = model.hop_length, 20
    audio = jax.random.normal(jax.random.key(2), (1, 41 * hop, model.in_channels))

    def encoded(x):
        return model.apply(variables, x, deterministic=True, method="encode").mean[0, frame].sum()

    seen = np.flatnonzero(np.abs(jax.jit(jax.grad(encoded))(audio)[0]).sum(-1))
    before, after = encoder_context(model)
    assert -(seen[0] // hop - frame) == before
    assert seen[-1] // hop - frame == after
    z = jax.random.normal(jax.random.key(3), (1, 41, model.latent_dim))
    span = slice(frame * hop, (frame + 1) * hop)

    def decoded(z):
        return model.apply(variables, z, method="decode")[0, span].sum()

    seen = np.flatnonzero(np.abs(jax.jit(jax.grad(decoded))(z)[0]).sum(-1))
    before, after = decoder_context(model)
    assert (frame - seen[0], seen[-1] - frame) == (before, after)


@pytest.mark.slow
def test_every_chunk_size_and_length_gives_one_pass(model):
    model, variables = model
    every_size = [ChunkedModel(model, variables, chunk_length=n, batch_size=3) for n in (1, 40, 100, 333, 5000)]
    for length in LENGTHS:
        length = {"hop-1": model.hop_length - 1, "hop": model.hop_length, "hop+1": model.hop_length + 1}.get(
            length, length
        )
        audio = np.random.default_rng(length).standard_normal((length, 2, model.in_channels)).astype(np.float32)
        frames = every_size[0].frames_of(length)
        padded = np.pad(audio, ((0, model.decoded_length(frames) - length), (0, 0), (0, 0)))
        whole = applied(model, variables, np.moveaxis(padded, 1, 0), deterministic=True, method="encode")
        decoded = np.asarray(applied(model, variables, whole.z, method="decode"))[:, :length]
        z = np.moveaxis(np.asarray(whole.z), 0, 1)
        for chunked in every_size:
            parts = list(chunked.encode(np.array_split(audio, min(length, 5)), length))
            for name in ("z", "mean", "logvar"):
                ours = np.concatenate([getattr(part, name) for part in parts])
                assert ours.shape == (frames, 2, model.latent_dim)
                theirs = np.asarray(getattr(whole, name))
                assert np.abs(np.moveaxis(ours, 1, 0) - theirs).max() <= 2e-6 * np.abs(theirs).max()
            ours = np.concatenate(list(chunked.decode(np.array_split(z, min(frames, 3)), frames, length)))
            assert ours.shape == (length, 2, model.in_channels)
            assert np.abs(np.moveaxis(ours, 1, 0) - decoded).max() <= 2e-6 * np.abs(decoded).max()


@pytest.mark.slow
def test_noise_does_not_depend_on_the_chunks(model):
    model, variables = model
    audio = np.random.default_rng(0).standard_normal((700, 2, model.in_channels)).astype(np.float32)

    def encode(chunk_length, key):
        chunked = ChunkedModel(model, variables, chunk_length=chunk_length)
        return np.concatenate([part.z for part in chunked.encode([audio], 700, key)])

    few, many = encode(700, jax.random.key(1)), encode(30, jax.random.key(1))
    np.testing.assert_allclose(few, many, atol=1e-5)
    difference = np.abs(few - encode(700, jax.random.key(2))).max()
    assert difference == 0 if model.posterior == "none" else difference > 0.01
    assert np.abs(few[:, 0] - few[:, 1]).max() > 0.01


@pytest.mark.slow
def test_lengths_take_a_few_compiled_shapes(model):
    model, variables = model
    chunked = ChunkedModel(model, variables)
    shapes = []
    for length in (100, 110, 900, 920, 100):
        list(chunked.encode([np.zeros((length, 1, model.in_channels), np.float32)], length))
        size, context = chunked._window("encode", chunked.frames_of(length))
        assert context.before == 0
        assert context.after <= 1  # what odd strides add
        shapes.append((size, context))
    assert len(set(shapes)) == 2
    assert max(shapes)[0] <= 2 * chunked.frames_of(900)
    for size, context in set(shapes):
        step = chunked_module._compiled_step(
            chunked_module._encode, (("context", context), ("core", size), ("model", model), ("sample", False))
        )
        assert step._cache_size() == 1


def test_signals_that_32_bits_cannot_count_are_refused(model):
    model, variables = model
    chunked = ChunkedModel(model, variables)
    with pytest.raises(DataError, match="are too many for 32-bit positions; give at most"):
        next(chunked.encode([np.zeros((1, 1, model.in_channels), np.float32)], 2**31))


def test_a_sliding_window_sees_zeros_around_the_blocks():
    blocks = [np.arange(3.0), np.arange(3.0, 4.0), np.arange(4.0, 9.0)]
    sliding = Sliding(blocks)
    np.testing.assert_array_equal(sliding.window(-2, 2), [0, 0, 0, 1])
    np.testing.assert_array_equal(sliding.window(1, 5), [1, 2, 3, 4])
    np.testing.assert_array_equal(sliding.window(7, 12), [7, 8, 0, 0, 0])
    np.testing.assert_array_equal(sliding.window(20, 22), [0, 0])
    far = Sliding(blocks)
    np.testing.assert_array_equal(far.window(6, 8), [6, 7])
    with pytest.raises(ValueError, match="no blocks"):
        Sliding([])
