"""The cache of what was compiled, and the memory that compiling took."""

import ctypes

import jax
import jax.numpy as jnp
import pytest

from audiovae_jax import compilation


@pytest.fixture
def cache_dir():
    """The setting, put back afterwards."""
    before = jax.config.jax_compilation_cache_dir
    yield lambda: jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_cache_is_in_the_users_folder_unless_told_otherwise(cache_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", "chosen")
    compilation.use_cache()
    assert cache_dir() == "chosen"
    jax.config.update("jax_compilation_cache_dir", None)
    compilation.use_cache()
    assert cache_dir() == str(tmp_path / "audiovae_jax" / "xla")


@pytest.mark.parametrize("library", [ctypes.CDLL, lambda _: object()])
def test_memory_is_given_back_where_the_library_can(monkeypatch, library):
    monkeypatch.setattr(ctypes, "CDLL", library)
    assert compilation.compiled(jax.jit(lambda x: x + 1).lower(jnp.zeros(())))(jnp.ones(())) == 2
