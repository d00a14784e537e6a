"""Rematerialization: which activations the backward pass recomputes instead of keeping.

Policies, from the fastest to the one that needs least memory (docs/scaling.md has measurements):

    none        keep all activations
    matmuls     keep the outputs of matmuls, convolutions and GELU; recompute norms and other
                activations
    blocks      keep each block's input (arXiv 1604.06174)
    everything  as blocks; within a block, recompute the residual block and attention separately
    offload     as blocks, with the inputs in host memory (accelerators)

Recomputing several blocks at once would save nothing: the decoder needs every block's output. All
policies keep what is expensive to compute and small: dropout masks, the mean and variance of norms,
and attention outputs.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from glide_jax.config import Remat

BLOCK_INPUT = "block_input"
"""Name of the activations that `offload` moves to the host."""

SAVED_ALWAYS = "kept"
"""Name of the activations that every policy keeps."""

SAVED_MATMUL = "product"
"""Name of the activations that `matmuls` keeps as well."""

Call = Callable[..., Any]


def recomputed(block: Call, remat: Remat) -> Call:
    """A block that keeps for its backward pass only the activations that `remat` allows."""
    if remat == "none":
        return block
    names = (SAVED_ALWAYS, SAVED_MATMUL) if remat == "matmuls" else (SAVED_ALWAYS,)
    return jax.checkpoint(block, policy=_keep(*names))


def recomputed_part(part: Call, remat: Remat) -> Call:
    """A part of a block, recomputed separately under `everything`."""
    return jax.checkpoint(part, policy=_keep(SAVED_ALWAYS)) if remat == "everything" else part


def offloading(network: Call, remat: Remat) -> Call:
    """All blocks together; under `offload`, block inputs wait in host memory."""
    if remat != "offload":
        return network
    to_host = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[SAVED_ALWAYS],
        names_which_can_be_offloaded=[BLOCK_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    )
    return jax.checkpoint(network, policy=_and_cudnn_attention(to_host))


def block_input(x: jax.Array) -> jax.Array:
    """`x`, named as a block's input."""
    return checkpoint_name(x, BLOCK_INPUT)


def save_always(x: jax.Array) -> jax.Array:
    """`x`, named to be kept under every policy."""
    return checkpoint_name(x, SAVED_ALWAYS)


def save_matmul(x: jax.Array) -> jax.Array:
    """`x`, named to be kept under `matmuls`: with its bias, as the next layer reads it."""
    return checkpoint_name(x, SAVED_MATMUL)


def _keep(*names: str) -> Call:
    return _and_cudnn_attention(jax.checkpoint_policies.save_only_these_names(*names))


def _and_cudnn_attention(policy: Call) -> Call:
    """The policy that keeps also what cuDNN's attention computes, which JAX does not name."""

    def keep(primitive: Any, *args: Any, **params: Any) -> Any:
        is_attention = str(primitive).startswith("dot_product_attention_fwd")
        return is_attention or policy(primitive, *args, **params)

    return keep
