import numpy as np

from audiovae_jax.ops import k_weighting


def test_the_filters_are_those_of_the_standard():
    published = [
        [1.53512485958697, -2.69169618940638, 1.19839281085285, 1.0, -1.69065929318241, 0.73248077421585],
        [1.0, -2.0, 1.0, 1.0, -1.99004745483398, 0.99007225036621],
    ]
    np.testing.assert_allclose(k_weighting.sections(48000), published, rtol=1e-6)
