"""Attention for TPUs whose weights never leave the chip's vector memory.

As in FlashAttention (arXiv 2205.14135), the backward pass computes the weights anew from queries,
keys and the logarithm of each softmax's denominator. All keys of a head fit into vector memory, so
a softmax is over whole rows, without FlashAttention's running maximum.

A vector register has 128 lanes, and heads are narrower, so a program of the kernel takes as many
neighbouring heads as fill the lanes. Of each product it keeps the lanes of one head, by zeros in
the others: the matrix unit would fill its 128 columns with nothing else.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

LANES = 128

MAX_LOGITS = 2**19
"""Of one head that vector memory holds at once, in float32: 2 MiB of 16."""


def fits(q_length: int, k_length: int, width: int, heads: int) -> bool:
    """Whether heads of this width fill lanes, and rows of this length vector memory."""
    whole = LANES % width == 0 and width * heads % LANES == 0
    return whole and _rows(q_length, k_length) > 0


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def attend(
    q: Float[Array, "b q d"],
    k: Float[Array, "b l d"],
    v: Float[Array, "b l d"],
    heads: int,
    causal: bool = False,
    interpret: bool = False,
) -> Float[Array, "b q d"]:
    """softmax(q k^T / sqrt(width of a head)) v, for all heads, which lie side by side in d.

    Args:
        q: queries.
        k: keys.
        v: values.
        heads: that share d; see `fits`.
        causal: hides from each position those after it.
        interpret: runs anywhere, slowly; for tests.
    """
    return _forward(q, k, v, heads, causal, interpret)[0]


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, heads: int, causal: bool, interpret: bool
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    blocks = _Blocks(q, k, heads)
    out, lse = pl.pallas_call(
        partial(_forward_kernel, width=blocks.width, causal=causal),
        grid=blocks.grid,
        in_specs=[blocks.queries, blocks.keys, blocks.keys],
        out_specs=[blocks.queries, blocks.lse],
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), blocks.lse_shape],
        compiler_params=blocks.parallel,
        cost_estimate=blocks.cost(products=2, q_sized=2, k_sized=2),
        interpret=interpret,
    )(q, k, v)
    return out, (q, k, v, out, lse)


def _backward(
    heads: int, causal: bool, interpret: bool, kept: tuple[jax.Array, ...], d_out: jax.Array
) -> tuple[jax.Array, ...]:
    q, k, v, out, lse = kept
    blocks = _Blocks(q, k, heads)
    sums = pltpu.VMEM((k.shape[1], LANES), jnp.float32)
    return tuple(
        pl.pallas_call(
            partial(_backward_kernel, width=blocks.width, causal=causal),
            grid=blocks.grid,
            in_specs=[
                blocks.queries,
                blocks.keys,
                blocks.keys,
                blocks.queries,
                blocks.lse,
                blocks.queries,
            ],
            out_specs=[blocks.queries, blocks.keys, blocks.keys],
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)],
            scratch_shapes=[sums, sums],
            compiler_params=blocks.parallel,
            cost_estimate=blocks.cost(products=5, q_sized=4, k_sized=4),
            interpret=interpret,
        )(q, k, v, out, lse, d_out)
    )


attend.defvjp(_forward, _backward)


class _Blocks:
    """What a program sees of each array: some rows of the queries, all keys, as many heads."""

    def __init__(self, q: jax.Array, k: jax.Array, heads: int) -> None:
        (self.batch, self.q_length, d), self.k_length = q.shape, k.shape[1]
        self.d, self.bytes = d, q.dtype.itemsize
        self.width = d // heads
        rows, self.tiles = _rows(self.q_length, self.k_length), d // LANES
        self.grid = (self.batch, self.tiles, self.q_length // rows)
        of_tile = LANES // self.width
        self.queries = pl.BlockSpec((1, rows, LANES), lambda b, tile, row: (b, row, tile))
        self.keys = pl.BlockSpec((1, self.k_length, LANES), lambda b, tile, row: (b, 0, tile))
        self.lse = pl.BlockSpec((1, 1, of_tile, rows), lambda b, tile, row: (b, tile, 0, row))
        self.lse_shape = jax.ShapeDtypeStruct(
            (self.batch, self.tiles, of_tile, self.q_length), jnp.float32
        )

    @property
    def parallel(self) -> Any:
        """Rows come one after the other: gradients of keys and values are summed over them."""
        return pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"))

    def cost(self, products: int, q_sized: int, k_sized: int) -> pl.CostEstimate:
        """So many products as large as that of queries and keys, reads and writes."""
        logits = self.batch * self.q_length * self.k_length * self.d // self.width
        rows = q_sized * self.q_length + k_sized * self.k_length
        return pl.CostEstimate(
            flops=2 * products * logits * LANES,
            transcendentals=logits,
            bytes_accessed=self.batch * self.d * rows * self.bytes,
        )


def _rows(q_length: int, k_length: int) -> int:
    """Of the queries that a program takes; 0 if they do not fit."""
    if q_length * k_length <= MAX_LOGITS:
        return q_length
    fitting = (rows for rows in (512, 256, 128) if rows * k_length <= MAX_LOGITS)
    return next((rows for rows in fitting if q_length % rows == 0), 0)


def _forward_kernel(
    q_ref: Any, k_ref: Any, v_ref: Any, out_ref: Any, lse_ref: Any, *, width: int, causal: bool
) -> None:
    q, k, v = q_ref[0], k_ref[0], v_ref[0]
    out = jnp.zeros(q.shape, jnp.float32)
    for head in range(LANES // width):
        logits = _logits(_of_head(q, head, width) * width**-0.5, k, causal)
        highest = jnp.max(logits, 1, keepdims=True)
        weights = jnp.exp(logits - highest)
        total = jnp.sum(weights, 1, keepdims=True)
        out += _of_head(_product(weights.astype(v.dtype), v) / total, head, width)
        lse_ref[0, 0, head, :] = (highest + jnp.log(total))[:, 0]
    out_ref[0] = out.astype(out_ref.dtype)


def _backward_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    out_ref: Any,
    lse_ref: Any,
    d_out_ref: Any,
    dq_ref: Any,
    dk_ref: Any,
    dv_ref: Any,
    dk_sum_ref: Any,
    dv_sum_ref: Any,
    *,
    width: int,
    causal: bool,
) -> None:
    """Appendix B.4 of FlashAttention's paper, row blocks inside."""

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        dk_sum_ref[...] = jnp.zeros_like(dk_sum_ref)
        dv_sum_ref[...] = jnp.zeros_like(dv_sum_ref)

    q, k, v, d_out = q_ref[0], k_ref[0], v_ref[0], d_out_ref[0]
    out_d_out = out_ref[0].astype(jnp.float32) * d_out.astype(jnp.float32)
    dq = jnp.zeros(q.shape, jnp.float32)
    for head in range(LANES // width):
        of_head = partial(_of_head, head=head, width=width)
        q_head = (of_head(q) * width**-0.5).astype(k.dtype)
        d_out_head = of_head(d_out).astype(k.dtype)
        weights = jnp.exp(_logits(q_head, k, causal) - lse_ref[0, 0, head, :][:, None])
        dv_sum_ref[...] += _product(weights.astype(k.dtype), d_out_head, contract=(0, 0))
        d_weights = _product(d_out_head, v, contract=(1, 1))
        d_logits = weights * (d_weights - jnp.sum(of_head(out_d_out), 1, keepdims=True))
        d_logits = d_logits.astype(k.dtype)
        dq += of_head(_product(d_logits, k)) * width**-0.5
        dk_sum_ref[...] += _product(d_logits, q_head, contract=(0, 0))
    dq_ref[0] = dq.astype(dq_ref.dtype)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _() -> None:
        dk_ref[0] = dk_sum_ref[...].astype(dk_ref.dtype)
        dv_ref[0] = dv_sum_ref[...].astype(dv_ref.dtype)


def _logits(q: jax.Array, k: jax.Array, causal: bool) -> jax.Array:
    logits = _product(q.astype(k.dtype), k, contract=(1, 1))
    if not causal:
        return logits
    row, column = (jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis) for axis in (0, 1))
    first = pl.program_id(2) * logits.shape[0]
    return jnp.where(column <= first + row, logits, -jnp.inf)


def _of_head(x: jax.Array, head: int, width: int) -> jax.Array:
    """In float32, zeros in the lanes of other heads."""
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    mine = (lane >= head * width) & (lane < (head + 1) * width)
    return jnp.where(mine, x.astype(jnp.float32), 0)


def _product(a: jax.Array, b: jax.Array, contract: tuple[int, int] = (1, 0)) -> jax.Array:
    """In float32, over these axes of `a` and `b`."""
    axes = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)
