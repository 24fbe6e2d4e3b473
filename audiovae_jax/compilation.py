"""What XLA compiles is kept, so that it is compiled once."""

import os
from pathlib import Path

import jax


def use_cache():
    """Keep what XLA compiles in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR says where."""
    if jax.config.jax_compilation_cache_dir is None:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(root) / "audiovae_jax" / "xla"))
