"""Checks that a discriminator or a loss of your own works in training.

Call them in a test::

    from audiovae_jax.training import contract

    def test_my_discriminator():
        contract.check_discriminator(MyDiscriminator())

    def test_my_loss():
        contract.check_loss(my_loss)

Each check raises `AssertionError`, whose message names the broken rule, or `TypeError` for outputs of a wrong type.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from audiovae_jax.discriminators.base import check_output, takes_known_maps
from audiovae_jax.losses import AdversarialLossCalculator
from audiovae_jax.training.adversarial import adversarial_pass, separate_passes


def check_discriminator(discriminator: nn.Module, *, channels: int = 2, length: int = 8192):
    """Check the rules that training relies on.

    1. `discriminator(audio: [B, T, C])` returns logits and feature maps, batch-first. They depend only on its
       parameters and the audio.
    2. Rows of a batch do not affect each other, because a batch is split over devices.
    3. Gradients are finite, for silence too. They reach the audio and every parameter.
    4. For a subclass of `Discriminator`, `discriminate` with known feature maps gives the generator the same gradient.

    Args:
      discriminator: an unbound linen module.
      channels, length: shape of the audio to check with, `[2, length, channels]`.
    """
    name = type(discriminator).__name__
    real, fake = _noise(2, length, channels)
    variables = jax.jit(discriminator.init)(jax.random.key(0), real)
    _require(
        set(variables) == {"params"}, f"{name} has variables {sorted(variables)}; only 'params' are trained and saved"
    )
    params = variables["params"]
    call = jax.jit(lambda audio: check_output(discriminator.apply({"params": params}, audio), name))

    both = call(real)
    for array in jax.tree.leaves(both):
        _require(
            array.shape[0] == len(real), f"{name} returns an array of shape {array.shape} for a batch of {len(real)}"
        )
    first = [np.asarray(x[:1], np.float32) for x in jax.tree.leaves(both)]
    other = [np.asarray(x[:1], np.float32) for x in jax.tree.leaves(call(real.at[1].set(fake[1])))]
    _require(_close(first, other, 1e-5), f"{name}: a row of the batch affects the output of another row")

    def audio_gradient(run, fake):
        return run(discriminator, AdversarialLossCalculator(), params, real, fake).audio_gradient()

    def real_loss(params, audio):
        # Only the real half's loss. In the sum with the generated half's, the gradient of the last bias is 0.
        logits, _ = discriminator.apply({"params": params}, audio)
        return sum(jnp.mean(nn.relu(1 - x)) for x in logits)

    @jax.jit
    def gradients(audio):
        return {"audio": audio_gradient(adversarial_pass, audio), "params": jax.grad(real_loss)(params, audio)}

    for kind, audio in (("noise", fake), ("silence", jnp.zeros_like(fake))):
        for path, gradient in jax.tree_util.tree_leaves_with_path(gradients(audio)):
            where = jax.tree_util.keystr(path)
            _require(np.isfinite(gradient).all(), f"{name}: the gradient of {where} is not finite for {kind}")
            _require(kind == "silence" or np.any(gradient), f"{name}: no gradient reaches {where}")
    if takes_known_maps(discriminator):
        runs = (adversarial_pass, separate_passes)
        joint, apart = (jax.jit(functools.partial(audio_gradient, run))(fake) for run in runs)
        _require(_close([joint], [apart], 1e-4), f"{name}: the gradient of the audio differs with known feature maps")


def check_loss(loss: Callable, *, channels: int = 2, length: int = 8192):
    """Check the rules that training relies on.

    1. `loss(prediction=..., target=...)` of `[B, T, C]` audio returns a float32 scalar.
    2. The loss of a batch is the mean of the losses of its rows, because a batch is split over devices.
    3. Gradients are finite, for silence and for a perfect prediction too. They reach the prediction.

    Args:
      loss: function of two arrays, `prediction` and `target`.
      channels, length: shape of the audio to check with, `[2, length, channels]`.
    """
    name = getattr(loss, "__name__", type(loss).__name__)
    target, prediction = _noise(2, length, channels)
    value_and_grad = jax.jit(jax.value_and_grad(lambda x, y: loss(prediction=x, target=y)))
    silence = jnp.zeros_like(target)
    for kind, x, y in (
        ("noise", prediction, target),
        ("a perfect prediction", target, target),
        ("a silent prediction", silence, target),
        ("a silent target", prediction, silence),
        ("silence", silence, silence),
    ):
        shape = jax.eval_shape(lambda x, y: loss(prediction=x, target=y), x, y)
        _require(
            getattr(shape, "shape", None) == () and shape.dtype == jnp.float32,
            f"{name} returns {shape} instead of a float32 scalar",
        )
        value, gradient = value_and_grad(x, y)
        _require(np.isfinite(value) and np.isfinite(gradient).all(), f"{name}: not finite for {kind}")
        _require(kind != "noise" or np.any(gradient), f"{name}: no gradient reaches the prediction")
    whole = value_and_grad(prediction, target)[0]
    rows = [value_and_grad(prediction[i : i + 1], target[i : i + 1])[0] for i in range(len(target))]
    _require(
        _close([whole], [np.mean(rows)], 1e-4), f"{name}: the loss of a batch is not the mean of the losses of its rows"
    )


def _noise(rows, length, channels):
    """Return two batches of noise at different levels."""
    levels = np.asarray([0.1, 0.3], np.float32)[:, None, None]
    noise = np.random.default_rng(0).standard_normal((2, rows, length, channels)).astype(np.float32)
    return jnp.asarray(noise * levels)


def _close(ours, theirs, rtol):
    return all(
        np.abs(np.asarray(a, np.float64) - b).max() <= rtol * max(np.abs(b).max(), 1e-6)
        for a, b in zip(ours, theirs, strict=True)
    )


def _require(condition, message):
    if not condition:
        raise AssertionError(message)
