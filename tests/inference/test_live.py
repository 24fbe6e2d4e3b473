"""Streams in blocks of any size against one pass."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import KINDS, SMALL_MODEL, applied, random_variables

from audiovae_jax import AudioVAE, Codec
from audiovae_jax.errors import DataError

MODELS = {
    "small": {},
    "odd strides": {"strides": (3, 5), "dilations": (1, 3)},
    "causal": {"padding": "causal"},
    "bfloat16": {"dtype": "bfloat16"},
    "causal with odd strides and an even kernel": {"strides": (3, 5), "padding": "causal", "kernel_size": 4},
    **{kind: arguments | {"strides": (3, 4)} for kind, arguments in KINDS.items()},
}
QUICK = ("odd strides",)


def _codec(name):
    model = AudioVAE(**{**SMALL_MODEL, **MODELS[name]})
    return Codec(model, random_variables(model), sample_rate=8000)


def _blocks(x, seed):
    """Cut `x` into blocks of one to a few hundred samples, some of them empty."""
    rng, begin = np.random.default_rng(seed), 0
    while begin < len(x):
        size = int(rng.choice([0, 1, 2, 7, 50, 311]))
        yield x[begin : begin + size]
        begin += size


def _streamed(stream, x, seed):
    return np.concatenate([*(stream.push(block) for block in _blocks(x, seed)), stream.flush()])


def _require_near(actual, expected, model):
    assert actual.shape == expected.shape
    bound = 3e-2 if model.dtype == jnp.bfloat16 else 1e-5
    np.testing.assert_allclose(actual, expected, atol=bound * np.abs(expected).max())


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MODELS])
def test_streams_equal_one_pass(name):
    codec = _codec(name)
    audio = np.random.default_rng(0).standard_normal((1403, codec.model.in_channels)).astype(np.float32)
    expected = codec.encode(audio).z[0]
    encoder = codec.stream_encoder()
    for seed in range(2):  # a flushed stream starts again
        _require_near(_streamed(encoder, audio, seed), expected, codec.model)
    _require_near(_streamed(codec.stream_encoder(block_frames=3), audio, 2), expected, codec.model)
    decoded = codec.decode(expected)
    decoder = codec.stream_decoder()
    for seed in range(2):
        _require_near(_streamed(decoder, expected, seed), decoded, codec.model)
    _require_near(_streamed(codec.stream_decoder(block_frames=5), expected, 3), decoded, codec.model)


@pytest.mark.slow
def test_a_stream_of_single_samples_returns_each_frame_after_its_latency():
    for name in ("small", "causal"):
        codec = _codec(name)
        hop = codec.model.hop_length
        audio = np.random.default_rng(0).standard_normal((40 * hop, 2)).astype(np.float32)
        encoder, decoder = codec.stream_encoder(), codec.stream_decoder()
        returned = decoded = 0
        for count, sample in enumerate(audio, start=1):
            z = encoder.push(sample[None])
            returned += len(z)
            assert returned == max(0, (count - encoder.latency) // hop + 1)
            decoded += len(decoder.push(z))
            assert decoded == max(0, returned * hop - decoder.latency)
        assert returned > 0
        assert (encoder.latency == hop) == (name == "causal")
        assert (decoder.latency == 0) == (name == "causal")


def test_a_long_stream_is_the_same_far_from_its_start():
    """Positions stop counting after the start, so that they cannot overflow."""
    codec = _codec("small")
    z = np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32)
    audio = _streamed(codec.stream_decoder(), z, 0)
    whole = applied(codec.model, codec.variables, z[None], method="decode")[0]
    np.testing.assert_allclose(audio, whole, atol=1e-5)


def test_the_past_alone_decides_a_causal_model():
    model = AudioVAE(**SMALL_MODEL, padding="causal")
    variables, hop = random_variables(model), model.hop_length
    audio = np.random.default_rng(0).standard_normal((1, 20 * hop, 2)).astype(np.float32)
    changed = audio.copy()
    changed[:, 10 * hop :] += 1
    first, second = (applied(model, variables, x, deterministic=True) for x in (audio, changed))
    np.testing.assert_array_equal(first.mean[:, :10], second.mean[:, :10])
    np.testing.assert_array_equal(first.reconstruction[:, : 10 * hop], second.reconstruction[:, : 10 * hop])
    assert np.abs(first.mean[:, 10] - second.mean[:, 10]).max() > 1e-3


def test_an_empty_stream_has_no_results_and_bad_blocks_are_refused():
    codec = _codec("causal")
    encoder = codec.stream_encoder()
    assert encoder.flush().shape == (0, 3)
    assert encoder.push(np.zeros((0, 2), np.float32)).shape == (0, 3)
    with pytest.raises(DataError, match=r"a block must be \[n, 2\], not \[5\]"):
        encoder.push(np.zeros(5, np.float32))
    with pytest.raises(DataError, match="a block"):
        encoder.push(np.full((1, 2), np.nan, np.float32))
    with pytest.raises(DataError, match="block_frames"):
        codec.stream_decoder(block_frames=0)
