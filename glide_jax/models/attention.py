"""Multi-head attention: compiled by XLA on any platform, Pallas on TPUs, cuDNN on NVIDIA GPUs."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float

from glide_jax.models.placement import on_each_device

Attend = Callable[..., jax.Array]
"""`(q, k, v, heads, *, causal=False, mask=None) -> out`; see `attend`."""


def attend(
    q: Float[Array, "b q d"],
    k: Float[Array, "b l d"],
    v: Float[Array, "b l d"],
    heads: int,
    *,
    causal: bool = False,
    mask: Bool[Array, "b l"] | None = None,
) -> Float[Array, "b q d"]:
    """softmax(q k^T / sqrt(head width)) v for every head; the softmax is in float32.

    Args:
        q: queries; the heads lie side by side in d.
        k: keys.
        v: values.
        heads: number of heads.
        causal: whether a query sees only the keys up to its own position; the queries are at the
            last positions of the keys.
        mask: True for the keys that queries see; all by default. Each query must see one.
    """
    logits = _logits(q, k, heads, causal, mask)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)  # b n q l
    v = v.reshape(*v.shape[:2], heads, -1)  # b l n k
    out = jnp.einsum("bnql,blnk->bqnk", weights, v)
    return out.reshape(*q.shape[:2], -1)  # b q d


def attend_on_cpu(
    q: Float[Array, "b q d"],
    k: Float[Array, "b l d"],
    v: Float[Array, "b l d"],
    heads: int,
    *,
    causal: bool = False,
    mask: Bool[Array, "b l"] | None = None,
) -> Float[Array, "b q d"]:
    """`attend`, which normalizes the output instead of the weights (as arXiv 2205.14135).

    On a CPU this saves passes over the weights when sampling; gradients take longer.

    Args:
        q, k, v, heads, causal, mask: as of `attend`.
    """
    logits = _logits(q, k, heads, causal, mask)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))  # b n q l, at most 1
    v = v.reshape(*v.shape[:2], heads, -1)  # b l n k
    out = jnp.einsum(
        "bnql,blnk->bnqk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    out = (out / weights.sum(-1, keepdims=True)).astype(v.dtype)  # b n q k
    return out.swapaxes(1, 2).reshape(q.shape)  # b q d


def _logits(
    q: Float[Array, "b q d"],
    k: Float[Array, "b l d"],
    heads: int,
    causal: bool,
    mask: Bool[Array, "b l"] | None,
) -> Float[Array, "b n q l"]:
    """q k^T / sqrt(head width) of every head, float32; -inf where a query must not see a key."""
    q, k = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k))  # b q n k, b l n k
    # As in GLIDE, both factors are scaled: half-precision matmuls stay small.
    scale = q.shape[-1] ** -0.25
    logits = jnp.einsum(
        "bqnk,blnk->bnql", q * scale, k * scale, preferred_element_type=jnp.float32
    )  # b n q l
    if causal:
        queries, keys = logits.shape[-2:]
        logits = jnp.where(jnp.tri(queries, keys, keys - queries, bool), logits, -jnp.inf)
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, -jnp.inf)
    return logits


def attend_on_tpu(
    q: Float[Array, "b q d"],
    k: Float[Array, "b l d"],
    v: Float[Array, "b l d"],
    heads: int,
    *,
    causal: bool = False,
    mask: Bool[Array, "b l"] | None = None,
    kind: str,
    batch: NamedSharding,
) -> Float[Array, "b q d"]:
    """`attend` by the Pallas kernel where it can, each device on its own examples.

    It can where the shapes fit it and all keys are seen.

    Args:
        q, k, v, heads, causal, mask: as of `attend`.
        kind: of TPU, as "TPU v5p".
        batch: sharding of the examples.
    """
    # Here, because it imports Pallas, which takes long and which other platforms do not need.
    from glide_jax.models import tpu_attention

    fits = tpu_attention.fits(kind, q.shape[1], k.shape[1], q.shape[2] // heads, heads)
    if mask is not None or not fits:
        return attend(q, k, v, heads, causal=causal, mask=mask)
    kernel = on_each_device(lambda q, k, v: tpu_attention.attend(q, k, v, heads, causal), batch)
    return kernel(q, k, v)


def attend_on_gpu(
    q: Float[Array, "b q d"],
    k: Float[Array, "b l d"],
    v: Float[Array, "b l d"],
    heads: int,
    *,
    causal: bool = False,
    mask: Bool[Array, "b l"] | None = None,
    batch: NamedSharding,
) -> Float[Array, "b q d"]:
    """`attend` by cuDNN's fused kernel where it can, each device on its own examples.

    It can where it takes the heads and all keys are seen.

    Args:
        q, k, v, heads, causal, mask: as of `attend`.
        batch: sharding of the examples.
    """
    if mask is not None or not cudnn_takes(q.dtype, q.shape[2] // heads):
        return attend(q, k, v, heads, causal=causal, mask=mask)
    kernel = on_each_device(partial(attend_fused, heads=heads, causal=causal), batch)
    return kernel(q, k, v)


def attend_fused(
    q: Float[Array, "b q d"],
    k: Float[Array, "b l d"],
    v: Float[Array, "b l d"],
    heads: int,
    *,
    causal: bool = False,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "b q d"]:
    """`attend` by `jax.nn.dot_product_attention`, which scales logits instead of both factors.

    Args:
        q, k, v, heads, causal: as of `attend`.
        implementation: cudnn, or xla, on any platform, for tests.
    """
    # JAX refuses odd lengths wherever it may take gradients: one more row, which is masked.
    even = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0))) for x in (q, k, v))
    b, l = k.shape[:2]
    out = jax.nn.dot_product_attention(
        *(x.reshape(*x.shape[:2], heads, -1) for x in even),  # b q n k, b l n k
        key_value_seq_lengths=jnp.full(b, l, jnp.int32) if l % 2 else None,
        is_causal=causal,
        implementation=implementation,
    )
    return out[:, : q.shape[1]].reshape(q.shape)  # b q d


def cudnn_takes(dtype: jnp.dtype, width: int) -> bool:
    """Whether cuDNN's fused kernel takes heads of this width, forward and backward.

    Hopper takes up to 256, but JAX asks the attached GPU whether it is one, and a plan has none.
    """
    return dtype in (jnp.bfloat16, jnp.float16) and width % 8 == 0 and width <= 128


def has_cudnn_attention(device: jax.Device) -> bool:
    """Whether a GPU runs cuDNN's fused kernel: NVIDIA's from Ampere on.

    Args:
        device: of the platform "gpu". AMD's have no numbers as compute capability.
    """
    major = str(device.compute_capability).partition(".")[0]
    return major.isdecimal() and int(major) >= 8
