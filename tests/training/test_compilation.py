"""The cache of compiled programs, and the memory of compiling."""

import ctypes
import gc

import jax
import jax.numpy as jnp
import pytest

from audiovae_jax.training import compilation

_SHORTEST = "jax_persistent_cache_min_compile_time_secs"


@pytest.fixture
def cache_dir(monkeypatch):
    """The setting, restored afterwards."""
    monkeypatch.delenv(_SHORTEST.upper(), raising=False)
    before = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", _SHORTEST)}
    yield lambda: jax.config.jax_compilation_cache_dir
    for name, value in before.items():
        jax.config.update(name, value)


def test_small_programs_are_cached_too_by_default(cache_dir, monkeypatch):
    for chosen, in_environment in ((3.0, False), (3.0, True), (1.0, True)):
        jax.config.update(_SHORTEST, chosen)
        if in_environment:
            monkeypatch.setenv(_SHORTEST.upper(), str(chosen))
        compilation.use_cache()
        assert getattr(jax.config, _SHORTEST) == chosen
    monkeypatch.delenv(_SHORTEST.upper())
    compilation.use_cache()
    assert getattr(jax.config, _SHORTEST) == 0.0


def test_the_cache_is_in_the_users_folder_by_default(cache_dir, tmp_path, monkeypatch):
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
    assert compilation.compiled(jax.jit(lambda x: x + 1), jnp.zeros(()))(jnp.ones(())) == 2
    counted = []
    compilation.compiled(jax.jit(jnp.matmul), *[jnp.zeros((64, 64))] * 2, count=counted.append)
    assert counted == [2 * 64**3]


def test_the_garbage_collector_is_paused_and_restored():
    def function(x):
        assert not gc.isenabled()
        if x.ndim:
            raise ValueError("not a scalar")
        return x

    compilation.compiled(jax.jit(function), jnp.zeros(()))
    assert gc.isenabled()
    with pytest.raises(ValueError, match="not a scalar"):
        compilation.compiled(jax.jit(function), jnp.zeros(1))
    assert gc.isenabled()
    gc.disable()
    try:
        compilation.compiled(jax.jit(function), jnp.zeros(()))
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.slow
def test_cleared_functions_are_traced_again():
    traced = []

    @jax.jit
    def function(x):
        traced.append(x)
        return x + 1

    function(jnp.zeros(()))
    function(jnp.zeros(()))
    assert len(traced) == 1
    compilation.forget()
    assert function(jnp.zeros(())) == 1
    assert len(traced) == 2
