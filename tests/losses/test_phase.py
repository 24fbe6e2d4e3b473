import functools

import jax.numpy as jnp
import numpy as np
import pytest

from audiovae_jax import losses
from audiovae_jax.ops import signal
from audiovae_jax.training import contract

ONE = {"fft_sizes": (256,), "hop_sizes": (64,)}


def _audio(seed, channels=2):
    return jnp.asarray(0.3 * np.random.default_rng(seed).standard_normal((2, 1024, channels)), jnp.float32)


def _spectra(audio):
    return np.asarray(signal.stft(jnp.moveaxis(audio, -1, 1).reshape(-1, 1024), 256, 64))


def _wrapped(x):
    return np.abs(x - 2 * np.pi * np.round(x / (2 * np.pi)))


@pytest.mark.parametrize(("name", "axis"), [("w_frequency", 1), ("w_delay", 2)])
def test_phase_derivatives_equal_numpy(name, axis):
    x, y = _audio(1), _audio(2)
    spectra = [_spectra(x), _spectra(y)]
    distance = _wrapped(np.diff(np.angle(spectra[0]), axis=axis) - np.diff(np.angle(spectra[1]), axis=axis))
    only = {"w_frequency": 0.0, "w_delay": 0.0, name: 2.0}
    equal = losses.phase_derivatives(prediction=x, target=y, magnitude_weighted=False, **ONE, **only)
    assert equal == pytest.approx(2 * distance.mean(), rel=1e-3)

    def smallest(sizes):
        before, after = (np.take(sizes, i, axis) for i in (range(sizes.shape[axis] - 1), range(1, sizes.shape[axis])))
        return np.minimum(before, after)

    sizes = [np.abs(s) for s in spectra]
    weight = smallest(np.minimum(*sizes)) / smallest(sizes[1]).sum(axis=(1, 2), keepdims=True)
    weighted = losses.phase_derivatives(prediction=x, target=y, **ONE, **only)
    assert weighted == pytest.approx(2 * (weight * distance).sum(axis=(1, 2)).mean(), rel=1e-3)


def test_phase_derivatives_ignore_level_and_polarity_and_see_a_detuned_tone():
    time = np.arange(4096) / 44100
    tone, detuned = (jnp.asarray(np.sin(2 * np.pi * f * time)[None, :, None], jnp.float32) for f in (1000, 1010))
    options = {**ONE, "w_delay": 0.0}
    assert losses.phase_derivatives(prediction=-0.5 * tone, target=tone, **options) == pytest.approx(0, abs=1e-2)
    # 10 Hz are 2 pi * 10 * 64 / 44100 radians per hop.
    expected = 2 * np.pi * 10 * 64 / 44100
    assert losses.phase_derivatives(prediction=detuned, target=tone, **options) == pytest.approx(expected, rel=0.1)


def test_stereo_correlation_in_closed_form():
    left, right = _audio(3, 1), _audio(4, 1)
    mono, inverted, level = (jnp.concatenate([left, r], axis=-1) for r in (left, -left, 0.5 * left))
    correlation = functools.partial(losses.stereo_correlation, n_fft=256)
    for n_mels in (1, 8):
        assert correlation(prediction=inverted, target=mono, n_mels=n_mels) == pytest.approx(2.0, rel=1e-3)
        assert correlation(prediction=level, target=mono, n_mels=n_mels) == pytest.approx(0.0, abs=1e-4)
    # Bands of independent channels have correlations near 0, of one sign and the other.
    wide = jnp.concatenate([left, right], axis=-1)
    assert 0.7 < correlation(prediction=wide, target=wide[..., :1] * jnp.ones(2), n_mels=1) < 1.1


def test_stereo_correlation_equals_numpy():
    x, y = 0.5 * _audio(5), _audio(6)
    found = losses.stereo_correlation(prediction=x, target=y, n_fft=256, hop_length=64, n_mels=1)
    (left, right), (left_t, right_t) = (np.moveaxis(_spectra(a).reshape(2, 2, -1, 129), 1, 0) for a in (x, y))

    def of(left, right):
        powers = [np.square(np.abs(s)).sum(-1) for s in (left, right)]
        return (left * right.conj()).real.sum(-1), np.sqrt(powers[0] * powers[1]), np.mean(powers, axis=0)

    (cross, size, _), (cross_t, size_t, power) = of(left, right), of(left_t, right_t)
    expected = (np.minimum(size, size_t) * np.abs(cross / size - cross_t / size_t)).sum(-1) / power.sum(-1)
    assert found == pytest.approx(expected.mean(), rel=1e-3)
    with pytest.raises(ValueError, match="stereo_correlation needs stereo audio"):
        losses.stereo_correlation(prediction=x[..., :1], target=y[..., :1])


@pytest.mark.parametrize(
    "loss",
    [
        functools.partial(losses.phase_derivatives, fft_sizes=(128, 64)),
        functools.partial(losses.phase_derivatives, fft_sizes=(64,), magnitude_weighted=False),
        functools.partial(losses.stereo_correlation, n_fft=128, n_mels=4),
        functools.partial(losses.multi_resolution_stft, fft_sizes=(64,), w_log1p_mag=1.0, perceptual_weighting="k"),
    ],
    ids=["phase", "phase_unweighted", "stereo", "log1p_k"],
)
def test_the_contract_of_losses_is_kept(loss):
    contract.check_loss(loss, length=512)
