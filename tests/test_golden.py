"""Equality with the PyTorch system: values of the original (`original_*.npz`), and of a reference in torch."""

import golden_configs as names
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN, applied

from audiovae_jax import AdversarialLossCalculator, EnCodecDiscriminator, discriminators, losses
from audiovae_jax.torch_io import audio_vae, import_discriminator
from audiovae_jax.torch_io.layout import torch_key


def channel_last(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


def channel_first(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def relative(actual, expected):
    """Return the largest difference, relative to the largest value."""
    return float(np.abs(np.asarray(actual) - expected).max() / max(np.abs(expected).max(), 1e-12))


def check_discriminator(discriminator, state_dict, io):
    """Relative errors of every output and gradient of a discriminator against a golden file.

    The parameters' gradients are those of the real half of `d_loss`. In the sum with the other half, those of the last
    layer cancel except for rounding.
    """
    real, fake = channel_last(io["real"]), channel_last(io["fake"])
    params = import_discriminator(state_dict, discriminator)
    calculator = AdversarialLossCalculator()

    def judge(params, audio):
        return discriminator.apply({"params": params}, audio)

    def generator(fake):
        losses = calculator.generator_losses(judge(params, real), judge(params, fake))
        return losses["total_adv_loss"], losses

    def d_loss(params):
        real_logits, fake_logits = judge(params, real)[0], judge(params, fake)[0]
        value = calculator.discriminator_losses((real_logits, []), (fake_logits, []))["d_loss"]
        return sum(jnp.mean(jax.nn.relu(1 - x)) for x in real_logits) / len(real_logits), value

    @jax.jit  # one program, which compiles the passes that they share once
    def run(params, fake):
        logits = {"real": judge(params, real)[0], "fake": judge(params, fake)[0]}
        return logits, jax.grad(generator, has_aux=True)(fake), jax.grad(d_loss, has_aux=True)(params)

    errors = {}
    logits, (grad_fake, generator_losses), (grads, value) = run(params, fake)
    for kind, scales in logits.items():
        for i, scale in enumerate(scales):
            expected = io[f"{kind}_logits_{i}"]
            errors[f"{kind}_logits_{i}"] = relative(arrange(scale, expected), expected)
    errors["g_adv"] = relative(generator_losses["g_adv_loss"], io["g_adv"])
    errors["fm"] = relative(generator_losses["fm_loss"], io["fm"])
    grad_fake += step_at_ties(
        lambda fake: judge(params, fake)[1], real, fake, channel_last(io["grad_fake"]) - grad_fake
    )
    errors["grad_fake"] = relative(channel_first(grad_fake), io["grad_fake"])
    errors["d_loss"] = relative(value, io["d_loss"])
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        name = torch_key(tuple(key.key for key in path))
        name = name if f"gradnorm/{name}" in io else names.parametrized(name)
        expected = float(io[f"gradnorm/{name}"])
        errors[f"gradnorm/{name}"] = abs(float(jnp.linalg.norm(grad)) - expected) / expected
    return errors


def step_at_ties(features, real, fake, difference):
    """Return the part of a gradient's difference that feature matching's ties explain.

    Where a feature of both recordings is the same to rounding, the sign of its difference is the machine's choice.
    Another choice adds a multiple of that feature's gradient.
    """

    def distances(fake):
        layers = zip(jax.tree.leaves(features(fake)), jax.tree.leaves(features(real)), strict=True)
        return jnp.concatenate([((a - b) / jnp.abs(b).max()).ravel() for a, b in layers])

    distance = np.abs(jax.jit(distances)(fake))
    ties = np.flatnonzero(distance < 3e-7)
    assert len(ties) < 64  # few, or they would explain anything: a recording has 2,000 to 8,192 samples
    if not len(ties):
        return jnp.zeros_like(fake)

    @jax.jit
    def gradients(ties):
        _, pull_back = jax.vjp(distances, fake)
        return jax.lax.map(lambda tie: pull_back(jnp.zeros(distance.shape).at[tie].set(1.0))[0].ravel(), ties)

    directions = np.asarray(gradients(ties)).T
    return (directions @ np.linalg.lstsq(directions, np.ravel(difference))[0]).reshape(fake.shape)


def arrange(logits, expected):
    """Return our logits in torch's layout: `[B, 1, ...]`, in the multi-period discriminator `[B, 1, T, period]`."""
    logits = channel_first(logits) if logits.ndim > 2 else np.asarray(logits)
    return logits if logits.shape == expected.shape else np.swapaxes(logits, -1, -2)


def worst(errors):
    name = max(errors, key=errors.get)
    return name, errors[name]


def test_the_model_gives_torchs_numbers():
    io = np.load(GOLDEN / "model.npz")
    imported = audio_vae.from_checkpoint({"state_dict": names.weights(io), "model_config": names.MODEL})
    output = applied(imported.model, imported.variables, channel_last(io["audio"]), noise=channel_last(io["eps"]))
    for name in ("reconstruction", "z", "mean", "logvar"):
        np.testing.assert_allclose(channel_first(getattr(output, name)), io[name], atol=1e-5, rtol=1e-5)


DISCRIMINATORS = {
    "discriminator": EnCodecDiscriminator(**names.DISCRIMINATOR),
    "scale": discriminators.MultiScaleDiscriminator(names.SCALE["msd_scales"]),
    "band": discriminators.BandSplitDiscriminator(**names.BAND),
    "original_discriminator_stft": discriminators.MultiScaleSTFTDiscriminator(4, n_ffts=(512, 256, 128)),
    "original_discriminator_period": discriminators.MultiPeriodDiscriminator(channels=(4, 8, 8, 16, 16)),
    "original_discriminator_mel_stft": discriminators.MultiScaleMelSTFTDiscriminator(
        4, n_ffts=(512, 256), n_mels=(40, 32)
    ),
    "original_discriminator_full": EnCodecDiscriminator(
        4, n_ffts=(512, 256), use_msd=False, mpd_periods=(2, 3), mpd_channels=(4, 8, 8, 8, 8), use_mel_stft=True,
        mel_stft_filters=4, mel_stft_n_ffts=(256,), mel_stft_n_mels=(32,),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    # The first is an ensemble of most kinds.
    [name if name == "discriminator" else pytest.param(name, marks=pytest.mark.slow) for name in DISCRIMINATORS],
)
def test_the_discriminators_give_torchs_numbers_and_gradients(name):
    io = np.load(GOLDEN / f"{name}.npz")
    errors = check_discriminator(DISCRIMINATORS[name], names.weights(io), io)
    assert worst(errors)[1] < 1e-4, worst(errors)


@pytest.mark.parametrize("name", ["sum_and_difference_stft", "multi_resolution_stft", "multi_scale_mel"])
def test_the_losses_give_torchs_numbers_and_gradients(name):
    options = {
        "sum_and_difference_stft": {
            "fft_sizes": (512, 128, 32), "hop_sizes": None, "win_lengths": None, "w_sc": 0.0, "w_lin_mag": 1.0,
            "perceptual_weighting": True,
        },
    }.get(name, {})  # fmt: skip
    bound = 1e-4 if name == "multi_scale_mel" else 3e-3
    check_loss(np.load(GOLDEN / "losses.npz"), name, getattr(losses, name), options, bound)
    if name == "multi_scale_mel":
        io = np.load(GOLDEN / "losses.npz")
        check_loss(io, "multi_scale_mel_batch", losses.multi_scale_mel, {"convergence": "batch"}, bound=1e-4)


def check_loss(io, name, fn, options, bound):
    """Check the value within 1e-5, and the gradient within `bound` or what rounding the prediction changes in it.

    Log-magnitudes divide by bins that contain only rounding, which differs between machines and versions of XLA. To
    change the prediction by half of float32's precision changes the gradient by up to 5e-3.
    """
    value, *gradient = _loss_and_gradient(io, fn, options)
    assert relative(value, io[name]) < 1e-5
    errors = _differences(gradient, (io[f"{name}/grad_norm"], io[f"{name}/grad_head"]))
    if (errors >= bound).any():
        signs = np.random.default_rng(0).choice([-1, 1], (4, *io["prediction"].shape))
        nearby = [np.float32(io["prediction"] * (1 + 6e-8 * sign)) for sign in signs]
        others = [_loss_and_gradient({**io, "prediction": prediction}, fn, options)[1:] for prediction in nearby]
        bound = np.max([_differences(other, gradient) for other in others], axis=0)
    assert (errors < bound).all(), (errors, bound)


def _differences(gradient, expected):
    return np.asarray([relative(a, b) for a, b in zip(gradient, expected, strict=True)])


def _loss_and_gradient(io, fn, options):
    """Return `(loss, norm of its gradient, first values of the gradient)`."""
    prediction, target = (channel_last(io[side]) for side in ("prediction", "target"))
    value, grad = jax.jit(jax.value_and_grad(lambda p: fn(prediction=p, target=target, **options)))(prediction)
    grad = channel_first(grad)
    return value, np.linalg.norm(grad), grad[0, :, :64]


def test_the_model_gives_the_originals_numbers():
    io = np.load(GOLDEN / "original_model.npz")
    imported = audio_vae.from_checkpoint({"state_dict": names.weights(io), "model_config": names.ORIGINAL_MODEL})
    model, variables = imported.model, imported.variables
    audio, noise, z, z_mean = (channel_last(io[name]) for name in ("audio", "eps", "z", "z_mean"))

    @jax.jit  # one program, which compiles the layers that they share once
    def run(variables):
        output = model.apply(variables, audio, noise=noise)
        return {
            **{name: getattr(output, name) for name in ("reconstruction", "z", "mean", "logvar")},
            "z_mean": model.apply(variables, audio, deterministic=True, method="encode").z,
            "decoded": model.apply(variables, z, method="decode"),
            "decoded_mean": model.apply(variables, z_mean, method="decode"),
        }

    errors = {name: float(np.abs(channel_first(x) - io[name]).max()) for name, x in run(variables).items()}
    assert worst(errors)[1] < 1e-5, worst(errors)


_QUARTER = {"hop_sizes": None, "win_lengths": None}
ORIGINAL_LOSSES = {
    "sum_diff_stft_aweighted": (
        losses.sum_and_difference_stft,
        {"fft_sizes": (2048, 1024, 512, 256, 128, 64, 32), "w_sc": 0.0, "w_lin_mag": 1.0, "perceptual_weighting": True,
         **_QUARTER},
    ),
    "sum_diff_stft": (losses.sum_and_difference_stft, {"fft_sizes": (1024, 512), "w_lin_mag": 1.0, **_QUARTER}),
    "mr_stft": (losses.multi_resolution_stft, {}),
    "mr_stft_aweighted": (
        losses.multi_resolution_stft,
        {"fft_sizes": (1024, 2048, 512), "w_lin_mag": 1.0, "perceptual_weighting": True, **_QUARTER},
    ),
    "mel": (losses.multi_scale_mel, {"convergence": "batch"}),
    "waveform_l1": (losses.waveform_l1, {}),
    "si_sdr": (losses.si_sdr, {}),
    "sd_sdr": (losses.sd_sdr, {}),
    "lsd": (losses.log_spectral_distance, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", ORIGINAL_LOSSES)
def test_the_losses_give_the_originals_numbers(name):
    io = np.load(GOLDEN / "original_losses.npz")
    bounds = {"sum_diff_stft_aweighted": 1e-3, "sum_diff_stft": 1e-3, "mr_stft": 2e-3, "mr_stft_aweighted": 1e-3}
    check_loss(io, name, *ORIGINAL_LOSSES[name], {**bounds, "lsd": 2.5e-3}.get(name, 1e-4))


def test_the_kl_gives_the_originals_numbers():
    io = np.load(GOLDEN / "original_losses.npz")
    mean, logvar = (channel_last(io[name]) for name in ("kl_mean", "kl_logvar"))
    l1 = losses.waveform_l1(prediction=channel_last(io["prediction"]), target=channel_last(io["target"]))
    for free_bits in (0.0, 0.5):
        kl = losses.kl_divergence(mean=mean, logvar=logvar, free_bits=free_bits)
        assert relative(kl, io[f"kl_freebits_{free_bits}"]) < 1e-5
        assert relative(l1 + 2.5e-5 * kl, io[f"total_freebits_{free_bits}_step1250"]) < 1e-5
