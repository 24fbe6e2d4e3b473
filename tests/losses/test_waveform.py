import jax.numpy as jnp
import numpy as np
import pytest

from audiovae_jax import losses


def _orthogonal():
    t = np.arange(1000) / 1000
    signal, noise = np.sin(2 * np.pi * 5 * t), np.cos(2 * np.pi * 9 * t)
    return (jnp.asarray(a, jnp.float32).reshape(1, -1, 1) for a in (signal, noise))


def test_l1():
    x = jnp.ones((1, 4, 2))
    assert losses.waveform_l1(prediction=x, target=-x) == 2.0


def test_si_sdr_of_orthogonal_noise_is_the_level_difference_at_any_scale():
    signal, noise = _orthogonal()
    for scale in (1.0, 0.1, 5.0):
        loss = losses.si_sdr(prediction=scale * (signal + 0.1 * noise), target=signal)
        assert loss == pytest.approx(-20.0, abs=1e-2)


def test_sd_sdr_counts_a_wrong_level():
    signal, _ = _orthogonal()
    assert losses.sd_sdr(prediction=0.5 * signal, target=signal) == pytest.approx(0.0, abs=1e-3)
    assert losses.si_sdr(prediction=0.5 * signal, target=signal) < -60
