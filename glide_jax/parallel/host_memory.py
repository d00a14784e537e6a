"""Memory of programs that run on a CPU: kept by the process instead of returned when freed.

XLA allocates the temporary arrays of a CPU program in every call. By default glibc returns so much
memory to the system at once, which then has to clear each page again for the next call.
"""

import ctypes
import importlib.metadata
import importlib.util

import jax

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Parameters of glibc's mallopt, from malloc.h."""


def keep_freed_memory() -> None:
    """Makes this process keep the memory that it frees, if JAX will compute on the CPU.

    Call it before JAX is used: threads that have allocated memory keep the arena that they have.
    C libraries other than glibc are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not computes_on_cpu():
        return
    mallopt(M_MMAP_MAX, 0)  # all memory comes from the heap,
    mallopt(M_TRIM_THRESHOLD, -1)  # which never shrinks,
    mallopt(M_ARENA_MAX, 1)  # and which all threads share: others take large arrays elsewhere


def computes_on_cpu() -> bool:
    """Whether JAX will find no accelerator: `jax_platforms` says so, or it has no plugin."""
    if chosen := jax.config.values["jax_platforms"]:
        return chosen == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None
