"""Fingerprints of arrays: 32-bit checksums that do not depend on the sharding.

Checkpoints store them beside the arrays, so that data corrupted in storage is detected before a
model trains on it.
"""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp


def fingerprints(tree: Any) -> dict[str, int]:
    """The fingerprint of every array in a tree, by path. Elements have 32, 16 or 8 bits.

    One program serves a flat dict of arrays: parameters, EMA and moments share it. Each call is
    waited for: on CPU devices, collectives of concurrent programs can deadlock.
    """
    parts = jax.tree.leaves(tree, is_leaf=_on_devices)
    found = [jax.device_get(_fingerprints(part)) for part in parts]
    return {name: int(x) for name, x in zip(named(tree), jax.tree.leaves(found), strict=True)}


def _on_devices(tree: Any) -> bool:
    """Whether a tree is a flat dict of device arrays. Host arrays are copied there one by one."""
    return isinstance(tree, dict) and all(isinstance(x, jax.Array) for x in tree.values())


@jax.jit
def _fingerprints(tree: Any) -> Any:
    return jax.tree.map(_fingerprint, tree)


@jax.jit
def _fingerprint(x: jax.Array) -> jax.Array:
    """Sum over the elements of a hash of their bits and their index, modulo 2^32.

    The hash is invertible for each index, so a single wrong element is always detected; several are
    missed with probability 2^-32. Sums modulo 2^32 do not depend on their order.
    """
    bits = x
    if x.dtype != jnp.bool_:
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed = bits.astype(jnp.uint32) + index * jnp.uint32(0x9E3779B1)
    for factor, shift in ((0x85EBCA6B, 13), (0xC2B2AE35, 16)):  # the finalizer of MurmurHash3
        mixed = mixed * jnp.uint32(factor)
        mixed = mixed ^ (mixed >> shift)
    return jnp.sum(mixed, dtype=jnp.uint32)


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
