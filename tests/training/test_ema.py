import jax
import numpy as np
import pytest

from audiovae_jax.training.ema import Ema


@pytest.mark.parametrize(("start", "power"), [(0, 0.0), (2, 0.0), (0, 0.75), (2, 0.75)])
def test_the_average_is_its_recurrence(start, power):
    ema = Ema(decay=0.9, start_step=start, power=power)
    update = jax.jit(ema.update)
    params = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    average = expected = params[0]
    for step in range(1, 8):
        decay = 0.9 if power == 0 else min(0.9, 1 - (1 + max(step - start, 0)) ** -power)
        decay = 0.0 if step < start else decay
        expected = decay * expected + (1 - decay) * params[step]
        average = update(average, params[step], step)
        np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"decay": 1.0}, "decay=1.0 must be below 1"), ({"power": -1.0}, "power=-1.0 must not be negative")],
)
def test_numbers_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Ema(**{"decay": 0.9, **change})
