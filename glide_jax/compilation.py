"""Compiled programs: kept between runs for faster starts, and the time that they take."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

from glide_jax.errors import UserError
from glide_jax.storage import cache_folder, expand_home

EVENTS = {
    f"/jax/core/compile/{part}_duration"
    for part in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
}
"""What JAX reports of tracing, lowering, and compiling or reading a compiled program."""


def keep_compiled_programs() -> None:
    """Keeps compiled programs in ~/.cache/glide_jax, unless JAX has a folder for them.

    JAX_COMPILATION_CACHE_DIR, or `jax.config.update("jax_compilation_cache_dir", folder)`, gives it
    one; an empty name turns the cache off. So does a user without a home directory.
    """
    given = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if given is None:
        try:
            given = str(cache_folder())
        except UserError:
            given = ""
    jax.config.update("jax_compilation_cache_dir", expand_home(given))


@contextmanager
def timed_compilation() -> Iterator[Callable[[], float]]:
    """Yields a function: the seconds that compilation has taken since.

    Compilation is tracing, lowering, and compiling or reading a program that was kept.
    """
    durations = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event in EVENTS:
            durations.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lambda: sum(durations)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
