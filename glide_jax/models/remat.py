"""What the backward pass computes anew instead of keeping, and equal blocks, mostly as one loop.

Policies, from the quickest to the smallest (docs/scaling.md has them measured):

    none        everything is kept
    matmuls     what matmuls and convolutions come to is kept, and GELU's results, not norms
                and other activations
    blocks      each block's input is kept (arXiv 1604.06174)
    everything  as blocks; within a block, convolutions and attention are recomputed apart
    offload     as blocks, and the inputs wait in the host's memory (accelerators)

Recomputing more than a block at once would save nothing: the way up needs every block's output.
All of them keep what is dear to compute and small: dropout's masks, norms' means and variances, and
what attention comes to.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from glide_jax.config import Remat
from glide_jax.models.placement import constrain_batch

BLOCK_INPUT = "block_input"
"""The name of what `offload` sends to the host."""

SAVED_ALWAYS = "kept"
"""The name of what every policy keeps."""

SAVED_MATMUL = "product"
"""The name of what `matmuls` keeps as well."""

Call = Callable[..., Any]


def recomputed(block: Call, remat: Remat) -> Call:
    """A block whose backward pass starts from what `remat` keeps of it."""
    if remat == "none":
        return block
    names = (SAVED_ALWAYS, SAVED_MATMUL) if remat == "matmuls" else (SAVED_ALWAYS,)
    return jax.checkpoint(block, policy=_keep(*names))


def recomputed_part(part: Call, remat: Remat) -> Call:
    """A part of a block, recomputed apart from the others where `remat` says so."""
    return jax.checkpoint(part, policy=_keep(SAVED_ALWAYS)) if remat == "everything" else part


def offloading(network: Call, remat: Remat) -> Call:
    """All blocks together; what `block_input` named waits in the host's memory if so asked."""
    if remat != "offload":
        return network
    to_host = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[SAVED_ALWAYS],
        names_which_can_be_offloaded=[BLOCK_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    )
    return jax.checkpoint(network, policy=to_host)


def block_input(x: jax.Array) -> jax.Array:
    """`x`, named as what a block is computed from, each device with its part of the batch."""
    return checkpoint_name(constrain_batch(x), BLOCK_INPUT)


def save_always(x: jax.Array) -> jax.Array:
    """`x`, named as what the backward pass keeps under every policy."""
    return checkpoint_name(x, SAVED_ALWAYS)


def save_matmul(x: jax.Array) -> jax.Array:
    """`x`, named as what `matmuls` keeps: a product with its bias, as the next layer reads it."""
    return checkpoint_name(x, SAVED_MATMUL)


def run_equal_blocks(
    blocks: Sequence[nnx.Module], x: Float[Array, "b l d"], remat: Remat
) -> Float[Array, "b l d"]:
    """`x` through blocks of the same shape, one after the other.

    They are one loop over their stacked parameters, so that only one is compiled, and that of
    parameters shared out over devices only one block's at a time are gathered. What a loop keeps is
    copied on the way in and out, which takes longer than `matmuls` saves: with it, each block is
    compiled, also where no gradient is taken. `none` is for small models, and loops.
    """
    if remat == "matmuls":
        for block in blocks:
            x = recomputed(block.__call__, remat)(block_input(x))
        return constrain_batch(x)
    graphdef, _ = nnx.split(blocks[0])
    stacked = jax.tree.map(lambda *p: jnp.stack(p), *(nnx.state(block) for block in blocks))

    def step(x: jax.Array, params: Any) -> tuple[jax.Array, None]:
        block = nnx.merge(graphdef, params)
        return recomputed(block.__call__, remat)(block_input(x)), None

    run = offloading(lambda x, stacked: jax.lax.scan(step, x, stacked)[0], remat)
    return constrain_batch(run(x, stacked))


_keep = jax.checkpoint_policies.save_only_these_names
