import functools

import flax.linen as nn
import jax.numpy as jnp
import pytest

from audiovae_jax import EnCodecDiscriminator, losses
from audiovae_jax.discriminators.base import Discriminator
from audiovae_jax.training import contract


class Judge(nn.Module):
    """A custom discriminator, with a fault on request."""

    fault: str = ""

    @nn.compact
    def __call__(self, audio):
        x = nn.leaky_relu(nn.Conv(4, (5,), strides=2)(audio))
        if self.fault == "rows":
            x = x - x.mean(axis=0)
        if self.fault == "batch norm":
            x = nn.BatchNorm(use_running_average=False)(x)
        if self.fault == "silence":
            x = jnp.log(jnp.abs(x))
        if self.fault == "unused":
            self.param("spare", nn.initializers.ones, (3,))
        logits = nn.Conv(1, (3,))(x)
        if self.fault == "summed":
            return [logits.sum(0)], [[x]]
        return (logits if self.fault == "bare" else [logits]), [[x]]


class ForgetsKnownMaps(Discriminator):
    """Uses the audio at half its scale in the pass with known feature maps."""

    in_channels: int = 2

    def views(self):
        return [lambda audio: audio]

    def stack(self, name):
        return _Stack(name=name)


class _Stack(nn.Module):
    @nn.compact
    def __call__(self, x, known_maps=None):
        x = nn.tanh(nn.Conv(4, (5,))(x if known_maps is None else 0.5 * x))
        return nn.Conv(1, (3,))(x), [x]


def _small(**parts):
    off = {"use_msd": False, "use_mpd": False}
    return EnCodecDiscriminator(4, n_ffts=(64,), **{**off, **parts})


def test_discriminators_keep_the_contract():
    contract.check_discriminator(Judge(), length=256)
    contract.check_discriminator(_small(), length=512)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("rows", "a row of the batch affects the output of another row"),
        ("batch norm", r"variables \['batch_stats', 'params'\]; only 'params' are trained"),
        ("silence", "is not finite for silence"),
        ("unused", r"no gradient reaches \['params'\]\['spare'\]"),
        ("summed", "for a batch of 2"),
    ],
)
def test_a_broken_rule_of_a_discriminator_is_named(fault, error):
    with pytest.raises(AssertionError, match=error):
        contract.check_discriminator(Judge(fault), length=256)


def test_outputs_of_a_wrong_type_and_other_gradients_are_named():
    with pytest.raises(TypeError, match="its logits are one array"):
        contract.check_discriminator(Judge("bare"), length=256)
    with pytest.raises(AssertionError, match="with known feature maps"):
        contract.check_discriminator(ForgetsKnownMaps(), length=256)


@pytest.mark.parametrize(
    "loss",
    [
        losses.waveform_l1,
        losses.si_sdr,
        functools.partial(losses.multi_resolution_stft, fft_sizes=(64, 128), hop_sizes=None, win_lengths=None),
    ],
    ids=["l1", "si_sdr", "mr_stft"],
)
def test_losses_keep_the_contract(loss):
    contract.check_loss(loss, length=512)


@pytest.mark.parametrize(
    ("loss", "error"),
    [
        (lambda prediction, target: jnp.abs(prediction - target).mean(axis=(1, 2)), "instead of a float32 scalar"),
        (lambda prediction, target: jnp.sqrt(jnp.square(prediction - target).mean()), "not finite for a perfect"),
        (lambda prediction, target: jnp.square(target).mean(), "no gradient reaches"),
        (lambda prediction, target: jnp.abs(prediction - target).sum(), "is not the mean of the losses of its rows"),
    ],
)
def test_a_broken_rule_of_a_loss_is_named(loss, error):
    with pytest.raises(AssertionError, match=error):
        contract.check_loss(loss, length=256)
