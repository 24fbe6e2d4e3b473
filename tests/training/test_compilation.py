"""The cache of compiled programs, and the memory of compiling."""

import ctypes
import gc
import os
import warnings
import zlib

import jax
import jax.numpy as jnp
import jaxlib
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

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


@pytest.mark.parametrize("chosen", [None, "chosen"])
def test_several_processes_share_a_cache_unless_the_user_has_chosen_one(cache_dir, tmp_path, monkeypatch, chosen):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", chosen)
    compilation.use_cache()
    compilation.share_cache(tmp_path / "runs" / "cache")
    assert cache_dir() == (chosen or str(tmp_path / "runs" / "cache"))


def test_a_shared_cache_of_another_user_is_not_used(cache_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    compilation.use_cache()
    before = cache_dir()
    monkeypatch.setattr("os.getuid", lambda: -1)
    compilation.share_cache(tmp_path / "cache")
    assert cache_dir() == before


@pytest.fixture
def own_cache(cache_dir, tmp_path, monkeypatch):
    """An empty cache folder that is in use."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    jax.config.update(_SHORTEST, 0.0)
    reset_cache()
    yield tmp_path
    reset_cache()


def _start(number):
    """Compile a program as a new process would, and return the texts of the warnings."""
    jax.clear_caches()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jax.jit(lambda x: x * number + 1).lower(jnp.ones(3)).compile()
    return [str(warning.message) for warning in caught]


def test_a_torn_entry_is_dropped_once(own_cache):
    _start(2)
    compilation.mend_cache()
    assert list(own_cache.glob("*-cache"))
    _start(3)
    entries = {path: path.read_bytes() for path in own_cache.glob("*-cache")}
    torn = [path for path in entries if path.stat().st_mtime_ns > (own_cache / ".checked").stat().st_mtime_ns]
    assert torn
    for path in torn:
        path.write_bytes(entries[path][:-9])
    compilation.mend_cache()
    assert set(own_cache.glob("*-cache")) == entries.keys() - set(torn)
    assert _start(3) == []
    compilation.mend_cache()
    assert _start(3) == []
    assert set(own_cache.glob("*-cache")) == entries.keys()


def test_entries_above_the_size_limit_are_dropped_oldest_first(own_cache, monkeypatch):
    for age in range(4):
        path = own_cache / f"program{age}-cache"
        path.write_bytes(zlib.compress(b"program"))
        os.utime(path, (1e9 - age, 1e9 - age))
    size = path.stat().st_size
    compilation.mend_cache(4 * size)
    assert len(list(own_cache.glob("*-cache"))) == 4
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(own_cache))  # the user's
    compilation.mend_cache(2 * size)
    assert len(list(own_cache.glob("*-cache"))) == 4
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    compilation.mend_cache(2 * size)
    assert sorted(path.name for path in own_cache.glob("*-cache")) == ["program0-cache", "program1-cache"]


def test_versions_and_flags_of_the_compilers(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/host0 --xla_gpu_autotune_level=0")
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    assert compilation.compiler_flags() == {"XLA_FLAGS": "--xla_gpu_autotune_level=0", "LIBTPU_INIT_ARGS": ""}
    versions = compilation.compiler_versions()
    assert versions["version of jax"] == jax.__version__
    assert versions["version of jaxlib"] == jaxlib.__version__
    assert "version of libtpu" in versions


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
