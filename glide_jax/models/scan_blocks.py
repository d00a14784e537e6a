"""Transformer blocks of the same shape, as one lax.scan over their stacked parameters."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from glide_jax.config import Remat
from glide_jax.models.platform import Platform
from glide_jax.models.remat import block_input, offloading, recomputed


def apply_blocks(
    blocks: Sequence[nnx.Module],
    x: Float[Array, "b l d"],
    remat: Remat,
    platform: Platform,
    *,
    mask: Bool[Array, "b l"] | None = None,
    unrolled: bool = False,
) -> Float[Array, "b l d"]:
    """`x` through blocks of the same shape, one after the other.

    A loop compiles one block instead of all, and gathers the sharded parameters of one at a time.
    It copies the kept activations on the way in and out, which takes longer than `matmuls` saves:
    with that policy every block is compiled, in forward-only programs too. `none`, meant for small
    models, loops.

    Args:
        blocks: modules of the same class and sizes.
        x: features.
        remat: the policy; see `remat`.
        platform: constrains each block's input.
        mask: positions that are seen, for blocks that take a mask.
        unrolled: compile every block, under any policy: for a network inside a sampling loop, which
            would stack the parameters in every step.
    """
    given = () if mask is None else (mask,)
    if unrolled or remat == "matmuls":
        for block in blocks:
            x = recomputed(block.__call__, remat)(block_input(platform.constrain_batch(x)), *given)
        return platform.constrain_batch(x)
    graphdef, _ = nnx.split(blocks[0])
    stacked = jax.tree.map(lambda *p: jnp.stack(p), *(nnx.state(block) for block in blocks))

    def step(x: jax.Array, params: Any) -> tuple[jax.Array, None]:
        block = nnx.merge(graphdef, params)
        x = block_input(platform.constrain_batch(x))
        return recomputed(block.__call__, remat)(x, *given), None

    run = offloading(lambda x, stacked: jax.lax.scan(step, x, stacked)[0], remat)
    return platform.constrain_batch(run(x, stacked))
