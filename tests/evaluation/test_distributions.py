import numpy as np
import pytest
import scipy.linalg

from audiovae_jax.data.audio import stream
from audiovae_jax.errors import ConfigError, DataError
from audiovae_jax.evaluation import distributions


def test_the_frechet_distance_of_gaussians_is_its_closed_form():
    rng = np.random.default_rng(0)
    first = rng.standard_normal((200_000, 2)) * [1, 2] + [0, 0]
    second = rng.standard_normal((200_000, 2)) * [3, 1] + [2, -1]
    # |m1 - m2|^2 + (s1 - s2)^2 along each axis.
    assert distributions.frechet(first, second) == pytest.approx(5 + 4 + 1, rel=0.02)
    assert distributions.frechet(first, first) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_is_that_of_a_matrix_root():
    rng = np.random.default_rng(1)
    first, second = (rng.standard_normal((50, 5)) @ rng.standard_normal((5, 5)) for _ in range(2))
    covariances = [np.cov(a, rowvar=False) for a in (first, second)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(first.mean(0) - second.mean(0)).sum() + np.trace(sum(covariances) - 2 * root)
    assert distributions.frechet(first, second) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_the_kernel_distance_of_gaussians_is_its_closed_form():
    rng = np.random.default_rng(0)
    dimensions, spread, shift = 3, 1.5, 1.0
    first = rng.standard_normal((4000, dimensions))
    second = spread * rng.standard_normal((4000, dimensions)) + shift

    def expected_kernel(variance, distance):  # of two Gaussians whose difference has that variance along each axis
        return (1 + variance) ** (-dimensions / 2) * np.exp(-dimensions * distance**2 / (2 * (1 + variance)))

    expected = expected_kernel(2, 0) + expected_kernel(2 * spread**2, 0) - 2 * expected_kernel(1 + spread**2, shift)
    assert distributions.kernel(first, second, bandwidth=1.0) == pytest.approx(100 * expected, rel=0.03)
    # Unbiased: of one distribution it is 0 on average, and may be below it.
    again = rng.standard_normal((4000, dimensions))
    assert abs(distributions.kernel(first, again)) < 0.1


def test_the_kernel_distance_written_pair_by_pair():
    rng = np.random.default_rng(2)
    first, second = rng.standard_normal((6, 2)), rng.standard_normal((4, 2)) + 1
    pairs = [np.linalg.norm(a - b) for i, a in enumerate(first) for b in first[i + 1 :]]
    width = np.median(pairs)

    def kernel(a, b):
        return np.exp(-np.square(a - b).sum() / (2 * width**2))

    within = [
        np.mean([kernel(a, b) for i, a in enumerate(of) for j, b in enumerate(of) if i != j]) for of in (first, second)
    ]
    expected = sum(within) - 2 * np.mean([kernel(a, b) for a in first for b in second])
    assert distributions.kernel(first, second) == pytest.approx(100 * expected)


def test_a_function_gets_windows_of_ten_seconds():
    seen = []

    def embedding(audio, sample_rate):
        seen.append((audio.shape, sample_rate))
        return np.ones((2, 3))

    audio = np.zeros((2500, 2), np.float32)
    assert distributions.embed(embedding, stream.of_array(audio, 100)).shape == (6, 3)
    assert seen == [((1000, 2), 100), ((1000, 2), 100), ((500, 2), 100)]
    with pytest.raises(DataError, match="has shape \\(3,\\); it must be finite"):
        distributions.embed(lambda audio, rate: np.ones(3), stream.of_array(audio, 100))
    with pytest.raises(DataError, match="the embedding failed: ZeroDivisionError"):
        distributions.embed(lambda audio, rate: 1 / 0, stream.of_array(audio, 100))


def test_functions_are_found_by_name():
    assert distributions.load("numpy:mean") is np.mean
    for name, said in (("numpy", "module:function"), ("numpy:nothing", "nothing"), ("nowhere:f", "nowhere")):
        with pytest.raises(ConfigError, match=said):
            distributions.load(name)
