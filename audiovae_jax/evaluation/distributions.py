"""Distances between two sets of embeddings: FAD and KAD."""

import importlib
from collections.abc import Callable

import numpy as np
import scipy.linalg

from audiovae_jax.data.audio.stream import AudioStream
from audiovae_jax.errors import ConfigError, DataError

Embedding = Callable[[np.ndarray, int], np.ndarray]

WINDOW_SECONDS = 10.0  # seconds of audio per call of an embedding function
KAD_SCALE = 100.0  # KAD's authors multiply by it for readability
_MAX_PAIRED = 5000  # embeddings per set that KAD compares; larger sets are subsampled


def load(name: str) -> Embedding:
    """Import the embedding function that `module:function` names.

    The module is imported from Python's path, which includes the current folder. The function accepts audio `[T, C]`
    float32 and its sample rate in Hz. It returns embeddings `[n, dimensions]`.

    Raises:
      ConfigError: there is no such function.
    """
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ConfigError(f"--embedding={name} must be module:function, as in my_clap:embed")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--embedding={name}: {error}") from error
    if not callable(found):
        raise ConfigError(f"--embedding={name} is not a function")
    return found


def embed(embedding: Embedding, audio: AudioStream) -> np.ndarray:
    """Compute embeddings `[n, dimensions]` of audio.

    The function is called with windows of ten seconds. The last one may be shorter.

    Raises:
      DataError: the function fails, or returns an invalid array.
    """
    size = round(WINDOW_SECONDS * audio.sample_rate)
    found, held, have = [], [], 0

    def take(window):
        try:
            made = np.asarray(embedding(window, audio.sample_rate), np.float64)
        except Exception as error:  # the user's code may raise anything
            raise DataError(f"{audio.name}: the embedding failed: {type(error).__name__}: {error}") from error
        if made.ndim != 2 or not np.isfinite(made).all():
            raise DataError(f"{audio.name}: the embedding has shape {made.shape}; it must be finite [n, dimensions]")
        found.append(made)

    for block in audio.blocks():
        held.append(block)
        have += len(block)
        if have >= size:
            joined = np.concatenate(held)
            whole = have // size * size
            for start in range(0, whole, size):
                take(joined[start : start + size])
            held, have = [joined[whole:]], have - whole
    if have:
        take(np.concatenate(held))
    return np.concatenate(found)


def frechet(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Compute the Fréchet distance of Gaussians fitted to both sets.

    This is FAD (Kilgour et al., 2019).

    Args:
      reference, estimate: `[n, dimensions]` each, with n of at least 2.
    """
    means = [a.mean(axis=0) for a in (reference, estimate)]
    covariances = [np.atleast_2d(np.cov(a, rowvar=False)) for a in (reference, estimate)]
    # sqrt(A B) has the same trace as sqrt(sqrt(A) B sqrt(A)), which is symmetric, so its eigenvalues are real.
    root = _root(covariances[0])
    eigenvalues = scipy.linalg.eigvalsh(root @ covariances[1] @ root)
    cross = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    return float(np.square(means[0] - means[1]).sum() + sum(map(np.trace, covariances)) - 2 * cross)


def kernel(reference: np.ndarray, estimate: np.ndarray, *, bandwidth: float | None = None) -> float:
    """Compute 100 times the unbiased squared MMD with a Gaussian kernel.

    This is KAD (Chung et al., 2025). MMD is the maximum mean discrepancy.

    Args:
      reference, estimate: `[n, dimensions]` each. From larger sets, 5,000 are drawn with a fixed seed.
      bandwidth: of the kernel `exp(-d^2 / (2 bandwidth^2))`; None for the median distance within the reference.
    """
    reference, estimate = (_drawn(a) for a in (reference, estimate))
    within = _squares(reference, reference)
    if bandwidth is None:
        pairs = within[np.triu_indices(len(within), 1)]
        bandwidth = float(np.sqrt(np.median(pairs))) or 1.0
    kernels = [
        np.exp(-squares / (2 * bandwidth**2))
        for squares in (within, _squares(estimate, estimate), _squares(reference, estimate))
    ]
    n, m = len(reference), len(estimate)
    own = [(k.sum() - np.trace(k)) / (count * (count - 1)) for k, count in zip(kernels, (n, m), strict=False)]
    return float(KAD_SCALE * (own[0] + own[1] - 2 * kernels[2].mean()))


def _root(matrix):
    values, vectors = scipy.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _drawn(embeddings):
    if len(embeddings) <= _MAX_PAIRED:
        return embeddings
    return embeddings[np.sort(np.random.default_rng(0).choice(len(embeddings), _MAX_PAIRED, replace=False))]


def _squares(a, b):
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)[None] - 2 * a @ b.T
    return np.maximum(squares, 0)
