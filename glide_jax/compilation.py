"""JAX's cache of compiled programs, for faster starts."""

import os
from pathlib import Path

import jax

from glide_jax.storage import expand_home


def keep_compiled_programs() -> None:
    """Keeps compiled programs in ~/.cache/glide_jax, unless JAX has a folder for them.

    JAX_COMPILATION_CACHE_DIR, or `jax.config.update("jax_compilation_cache_dir", folder)`, gives it
    one; an empty name turns the cache off. So does a user without a home directory.
    """
    given = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if given is None:
        cache = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        given = "" if cache.startswith("~") else str(Path(cache) / "glide_jax")
    jax.config.update("jax_compilation_cache_dir", expand_home(given))
