import jax.numpy as jnp
import numpy as np
import pytest

from audiovae_jax import losses
from audiovae_jax.losses.kl import KLTerm


def test_the_standard_normal_diverges_by_nothing_and_a_shift_by_half_its_square():
    zeros = jnp.zeros((2, 5, 3))
    assert losses.kl_divergence(mean=zeros, logvar=zeros) == 0.0
    assert losses.kl_divergence(mean=zeros + 2.0, logvar=zeros) == pytest.approx(0.5 * 4 * 15)
    narrow = losses.kl_divergence(mean=zeros, logvar=zeros + np.log(0.25))
    assert narrow == pytest.approx(15 * 0.5 * (np.log(4) + 0.25 - 1), rel=1e-5)


def test_free_bits_are_a_floor_of_each_element():
    zeros = jnp.zeros((2, 5, 3))
    assert losses.kl_divergence(mean=zeros, logvar=zeros, free_bits=0.5) == pytest.approx(7.5)


def test_the_frame_reduction_does_not_grow_with_the_crop():
    short, long = jnp.ones((1, 5, 3)), jnp.ones((1, 50, 3))
    values = [losses.kl_divergence(mean=m, logvar=0 * m, reduction="frame") for m in (short, long)]
    assert values[0] == pytest.approx(float(values[1]))
    with pytest.raises(ValueError, match="neither"):
        losses.kl_divergence(mean=short, logvar=short, reduction="mean")


def test_the_weight_warms_up_linearly():
    term = KLTerm(weight=1e-4, warmup_steps=5000)
    assert term.weight_at(1250) == pytest.approx(2.5e-5)
    assert term.weight_at(9000) == pytest.approx(1e-4)
    assert KLTerm(weight=1e-4, warmup_steps=0).weight_at(0) == pytest.approx(1e-4)
