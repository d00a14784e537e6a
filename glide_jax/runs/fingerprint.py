"""A number for each array that tells whether it is still the same, however it is sharded.

Checkpoints keep these numbers beside the arrays: storage that gave back other bits than it was
given is noticed, and a model never trains on from them.
"""

from typing import Any

import jax
import jax.numpy as jnp


def fingerprints(tree: Any) -> dict[str, int]:
    """Of every array in a tree, by its place there; arrays are of 32, 16 or 8 bits a number.

    One after the other, as in `train.py`: collectives of several programs at once can deadlock on
    CPU devices.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): int(_fingerprint(leaf))
        for path, leaf in leaves
    }


@jax.jit
def _fingerprint(x: jax.Array) -> jax.Array:
    """The sum of all numbers' bits, each mixed with its place, modulo 2^32.

    The mix is invertible for each place, so a single wrong number always shows; of several, one
    change in 2^32 does not. Sums modulo 2^32 are the same in any order.
    """
    bits = x
    if x.dtype != jnp.bool_:
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed = bits.astype(jnp.uint32) + place * jnp.uint32(0x9E3779B1)
    for factor, shift in ((0x85EBCA6B, 13), (0xC2B2AE35, 16)):  # MurmurHash3's last lines
        mixed = mixed * jnp.uint32(factor)
        mixed = mixed ^ (mixed >> shift)
    return jnp.sum(mixed, dtype=jnp.uint32)
