import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiovae_jax import losses
from audiovae_jax.losses import spectral
from audiovae_jax.ops import signal

STFT = {"fft_sizes": (256, 128), "hop_sizes": None, "win_lengths": None}


def _audio(seed=0, channels=2):
    return jnp.asarray(0.3 * np.random.default_rng(seed).standard_normal((2, 1024, channels)), jnp.float32)


def test_twice_the_signal_has_closed_form_distances():
    x = _audio()
    only = {"w_sc": 0.0, "w_log_mag": 0.0, "w_lin_mag": 0.0}

    def loss(**weight):
        return losses.multi_resolution_stft(prediction=2 * x, target=x, **STFT, **{**only, **weight})

    assert loss(w_log_mag=1.0) == pytest.approx(np.log(2), rel=1e-3)
    assert loss(w_sc=1.0) == pytest.approx(1.0, rel=1e-3)
    # The loss is linear in the weights, and zero if all are zero.
    assert loss(w_log_mag=3.0, w_sc=0.5) == pytest.approx(3 * np.log(2) + 0.5, rel=1e-3)
    assert loss() == 0.0


def test_log1p_magnitudes_equal_numpy():
    x, y = _audio(1), _audio(2)

    def magnitudes(audio):
        return np.abs(signal.stft(jnp.moveaxis(audio, -1, 1), 256))

    expected = np.abs(np.log1p(magnitudes(x)) - np.log1p(magnitudes(y))).mean()
    found = losses.multi_resolution_stft(
        prediction=x, target=y, fft_sizes=(256,), w_sc=0.0, w_log_mag=0.0, w_log1p_mag=2.0
    )
    assert found == pytest.approx(2 * expected, rel=1e-4)


def test_perceptual_weightings_filter_both_signals():
    x, y = _audio(1), _audio(2)
    args = {"fft_sizes": (256,), "w_lin_mag": 1.0}

    def filtered(audio):
        return jnp.moveaxis(signal.k_weight(jnp.moveaxis(audio, -1, 1), 44100), 1, -1)

    expected = losses.multi_resolution_stft(prediction=filtered(x), target=filtered(y), **args)
    found = losses.multi_resolution_stft(prediction=x, target=y, perceptual_weighting="k", **args)
    assert found == pytest.approx(float(expected), rel=1e-5)
    a, true = (
        losses.multi_resolution_stft(prediction=x, target=y, perceptual_weighting=w, **args) for w in ("a", True)
    )
    assert a == true
    assert abs(found - a) > 1e-2
    with pytest.raises(ValueError, match="perceptual_weighting='c' is none of True"):
        losses.multi_resolution_stft(prediction=x, target=y, perceptual_weighting="c")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["multi_resolution_stft", "sum_and_difference_stft", "mid_side_stft"])
def test_ffts_default_to_hops_of_a_quarter_and_full_windows(name):
    loss, given = getattr(losses, name), {"prediction": _audio(1), "target": _audio(2)}
    for sizes in ((256,), (512, 256, 128)):
        hops = tuple(size // 4 for size in sizes)
        full = loss(**given, fft_sizes=sizes, hop_sizes=hops, win_lengths=sizes)
        assert loss(**given, fft_sizes=sizes) == full
        assert loss(**given, fft_sizes=sizes, hop_sizes=hops) == full
        assert loss(**given, fft_sizes=sizes, win_lengths=sizes) == full
    longer = {name: jnp.tile(audio, (1, 3, 1)) for name, audio in given.items()}
    published = {"hop_sizes": (120, 240, 50), "win_lengths": (600, 1200, 240)}
    assert loss(**longer) == loss(**longer, fft_sizes=(1024, 2048, 512), **published)


def test_a_perfect_prediction_costs_nothing_and_has_a_finite_gradient():
    x = _audio()
    for fn in (losses.multi_resolution_stft, losses.multi_scale_mel, losses.log_spectral_distance):
        options = {} if fn is losses.log_spectral_distance else {"fft_sizes": (256,), "hop_sizes": None}
        if fn is losses.multi_resolution_stft:
            options["win_lengths"] = None
        if fn is losses.multi_scale_mel:
            options["n_mels"] = (16,)
        value, grad = jax.jit(jax.value_and_grad(lambda p, fn=fn, o=options: fn(prediction=p, target=x, **o)))(x)
        assert value == pytest.approx(0.0, abs=1e-6)
        assert np.isfinite(grad).all()


def test_sum_and_difference_are_weighted_apart():
    left_only = jnp.stack([_audio()[..., 0], jnp.zeros((2, 1024))], axis=-1)
    mono = jnp.repeat(_audio()[..., :1], 2, axis=-1)
    args = {"prediction": mono, "target": left_only, **STFT}
    total = losses.sum_and_difference_stft(**args, w_diff=0.0)
    difference = losses.sum_and_difference_stft(**args, w_sum=0.0)
    both = losses.sum_and_difference_stft(**args)
    assert both == pytest.approx(float(total + difference), rel=1e-5)
    assert difference > total  # mono has no side at all


def test_mid_side_is_half_the_sum_and_difference():
    x = _audio()
    np.testing.assert_allclose(spectral.mid_side(x)[..., 0], (x[..., 0] + x[..., 1]) / 2, rtol=1e-6)
    np.testing.assert_allclose(spectral.mid_side(x)[..., 1], (x[..., 0] - x[..., 1]) / 2, rtol=1e-6)
    swapped = losses.mid_side_stft(prediction=x[..., ::-1], target=x, **STFT)
    assert swapped == pytest.approx(0.0, abs=1e-5)  # magnitudes ignore the side's sign


def test_the_per_item_form_does_not_depend_on_the_split_and_the_batch_form_does():
    x, y = _audio(0) * jnp.array([1.0, 9.0])[:, None, None], _audio(1)
    options = {"fft_sizes": (256,), "n_mels": (16,)}

    def mean_of_halves(**kw):
        halves = [losses.multi_scale_mel(prediction=x[i : i + 1], target=y[i : i + 1], **options, **kw) for i in (0, 1)]
        return float(sum(halves) / 2)

    whole = losses.multi_scale_mel(prediction=x, target=y, **options)
    assert mean_of_halves() == pytest.approx(float(whole), rel=1e-5)
    whole = losses.multi_scale_mel(prediction=x, target=y, convergence="batch", **options)
    assert abs(mean_of_halves(convergence="batch") - float(whole)) > 1e-2


def test_misuse_is_named():
    x = _audio()
    with pytest.raises(ValueError, match="lists of one length, at least 1, not 2, 1 and 2"):
        losses.multi_resolution_stft(prediction=x, target=x, fft_sizes=(64, 128), hop_sizes=(16,), win_lengths=None)
    with pytest.raises(ValueError, match="needs stereo audio"):
        losses.sum_and_difference_stft(prediction=x[..., :1], target=x[..., :1])
    with pytest.raises(ValueError, match="of one shape"):
        losses.waveform_l1(prediction=x, target=x[:1])
    with pytest.raises(ValueError, match="leaves 12 mel bands without a bin|mel bands without a bin"):
        losses.multi_scale_mel(prediction=x, target=x, fft_sizes=(128,), n_mels=(64,))
