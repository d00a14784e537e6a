"""Fingerprints of arrays: 32-bit checksums that do not depend on the sharding.

Checkpoints store them beside the arrays, so that data corrupted in storage is detected before a
model trains on it.
"""

import hashlib
import json
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ON_THE_HOST = 2**17
"""Largest number of elements that NumPy hashes: a compiled kernel for each would take longer."""


def fingerprints(tree: Any) -> dict[str, int]:
    """The fingerprint of every array in a tree, by path. Elements have 32, 16 or 8 bits.

    One program serves the large arrays of a flat dict: parameters, EMA and moments share it. Each
    call is waited for: on CPU devices, collectives of concurrent programs can deadlock.
    """
    parts = jax.tree.leaves(tree, is_leaf=_on_devices)
    found = [_of_dict(x) if isinstance(x, dict) else _of_dict({"": x})[""] for x in parts]
    return {name: int(x) for name, x in zip(named(tree), jax.tree.leaves(found), strict=True)}


def _on_devices(tree: Any) -> bool:
    """Whether a tree is a flat dict of device arrays. Arrays of others are hashed one by one."""
    return isinstance(tree, dict) and all(isinstance(x, jax.Array) for x in tree.values())


def _of_dict(arrays: dict[str, Any]) -> dict[str, Any]:
    """The fingerprints, as scalars of NumPy."""
    small = {name: x for name, x in arrays.items() if _is_small(x)}
    large = {name: x for name, x in arrays.items() if name not in small}
    found = {name: _hash(x, np) for name, x in jax.device_get(small).items()}
    return found | (jax.device_get(_fingerprints(large)) if large else {})


def _is_small(x: Any) -> bool:
    """Whether the host hashes an array, of which it must have all elements."""
    if x.size > ON_THE_HOST:
        return False
    return not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated


@jax.jit
def _fingerprints(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _hash(x, jnp) for name, x in arrays.items()}


def _hash(x: Any, xp: ModuleType) -> Any:
    """Sum over the elements of a hash of their bits and their index, modulo 2^32.

    The hash is invertible for each index, so a single wrong element is always detected; several are
    missed with probability 2^-32. Sums modulo 2^32 do not depend on their order.

    Args:
        x: of any shape.
        xp: numpy or jax.numpy, of which `x` is an array.
    """
    bits = x if x.dtype == bool else x.view(f"uint{8 * x.dtype.itemsize}")
    index = xp.zeros(x.shape, "uint32")
    for axis, size in enumerate(x.shape):
        along = xp.arange(size, dtype="uint32").reshape(-1, *[1] * (x.ndim - axis - 1))
        index = index * xp.uint32(size) + along
    with np.errstate(over="ignore"):
        mixed = bits.astype("uint32") + index * xp.uint32(0x9E3779B1)
        for factor, shift in ((0x85EBCA6B, 13), (0xC2B2AE35, 16)):  # the finalizer of MurmurHash3
            mixed = mixed * xp.uint32(factor)
            mixed = mixed ^ (mixed >> xp.uint32(shift))
    return xp.sum(mixed, dtype="uint32")


def named(tree: Any) -> dict[str, Any]:
    """A tree's leaves by path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def descriptions(tree: Any) -> dict[str, dict[str, Any]]:
    """Shape and fingerprint of every array."""
    found = fingerprints(tree)
    return {
        name: {"shape": list(leaf.shape), "fingerprint": found[name]}
        for name, leaf in named(tree).items()
    }


def digest(record: dict[str, Any]) -> str:
    """A digest of JSON data."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
