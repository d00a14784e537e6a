"""Pallas attention kernel for TPUs: attention weights never leave the chip's vector memory (VMEM).

As in FlashAttention (arXiv 2205.14135), the backward pass recomputes the weights from queries, keys
and the logarithm of each softmax's denominator (`lse`). All keys of a head fit into VMEM, so each
softmax sees complete rows, without FlashAttention's running maximum.

A vector register has 128 lanes and a head is narrower, so the neighboring heads that fill the lanes
are read together, as a tile. A matmul of a tile's keys with one head's queries has zeros in the
lanes of the other heads; the matrix unit would leave those columns empty anyway. Logits are laid
out as (keys, queries), so that forward and backward pass transpose tiles, never the weights.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from glide_jax.models.remat import save_always

LANES = 128
"""Lanes of a vector register."""

VMEM_BYTES = 24 * 2**20
"""VMEM that a kernel program may use."""

SMALL_VMEM_KINDS = ("TPU v2", "TPU v3", "TPU v4", "TPU v4 lite")
"""TPU kinds with less VMEM than that: 16 MiB."""

MAX_LOGITS = 1280 * 2**10
"""Logits of one head held in VMEM at once, in float32: 5 MiB."""

PROGRAM_LOGITS = 2**20
"""Logits of all heads of a program, unless a single head has more."""


def fits(kind: str, q_length: int, k_length: int, width: int, heads: int) -> bool:
    """Whether the heads fill the lanes and their rows fit into VMEM.

    Args:
        kind: of device, as in `jax.Device.device_kind`; "" for other platforms.
        q_length: number of queries.
        k_length: number of keys.
        width: of a head.
        heads: number of heads, side by side.
    """
    if not kind or kind in SMALL_VMEM_KINDS:
        return False
    fills_lanes = LANES % width == 0 and width * heads % LANES == 0
    return fills_lanes and _rows(q_length, k_length) > 0


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def attend(
    q: Float[Array, "b q d"],
    k: Float[Array, "b l d"],
    v: Float[Array, "b l d"],
    heads: int,
    causal: bool = False,
    interpret: bool = False,
) -> Float[Array, "b q d"]:
    """softmax(q k^T / sqrt(head width)) v for every head.

    Args:
        q: queries; the heads lie side by side in d.
        k: keys.
        v: values.
        heads: number of heads, for which `fits` is true.
        causal: whether a query sees only the keys up to its own position.
        interpret: interpret the kernel: on any platform, slowly, for tests.
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
        out_shape=[jax.ShapeDtypeStruct(q.shape, _bits(q.dtype)), blocks.lse_shape],
        compiler_params=blocks.compiler_params,
        cost_estimate=blocks.cost(matmuls=2, q_sized=2, k_sized=2),
        interpret=interpret,
    )(q, k, v)
    out, lse = save_always(out), save_always(lse)
    return jax.lax.bitcast_convert_type(out, q.dtype), (q, k, v, out, lse)


def _backward(
    heads: int, causal: bool, interpret: bool, saved: tuple[jax.Array, ...], d_out: jax.Array
) -> tuple[jax.Array, ...]:
    q, k, v, out, lse = saved
    blocks = _Blocks(q, k, heads)
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
            scratch_shapes=[blocks.sums, blocks.sums],
            compiler_params=blocks.compiler_params,
            cost_estimate=blocks.cost(matmuls=5, q_sized=4, k_sized=4),
            interpret=interpret,
        )(q, k, v, out, lse, d_out)
    )


attend.defvjp(_forward, _backward)


def _bits(dtype: jnp.dtype) -> jnp.dtype:
    """Type of the activations saved for the backward pass.

    Integers: JAX inserts a rounding of saved floating-point arrays, one more pass over memory.
    """
    return jnp.dtype(f"uint{8 * dtype.itemsize}")


class _Blocks:
    """Blocks of each array that one program reads: rows of queries, all keys, some heads."""

    def __init__(self, q: jax.Array, k: jax.Array, heads: int) -> None:
        (self.batch, self.q_length, d), self.k_length = q.shape, k.shape[1]
        self.d, self.bytes = d, q.dtype.itemsize
        self.width = d // heads
        rows, tile_heads = _rows(self.q_length, self.k_length), LANES // self.width
        tiles = _tiles(d // LANES, tile_heads * rows * self.k_length)
        lanes = tiles * LANES
        self.grid = (self.batch, d // lanes, self.q_length // rows)
        self.queries = pl.BlockSpec((1, rows, lanes), lambda b, tile, row: (b, row, tile))
        self.keys = pl.BlockSpec((1, self.k_length, lanes), lambda b, tile, row: (b, 0, tile))
        lse = (1, tiles, tile_heads, rows)
        self.lse = pl.BlockSpec(lse, lambda b, tile, row: (b, tile, 0, row))
        self.lse_shape = jax.ShapeDtypeStruct(
            (self.batch, d // LANES, tile_heads, self.q_length), _bits(jnp.dtype(jnp.float32))
        )
        self.sums = pltpu.VMEM((self.k_length, lanes), jnp.float32)

    @property
    def compiler_params(self) -> Any:
        """Row blocks run in order: gradients of keys and values are summed over them."""
        return pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        )

    def cost(self, matmuls: int, q_sized: int, k_sized: int) -> pl.CostEstimate:
        """Cost of matmuls as large as q k^T, and of arrays read or written like q or k."""
        logits = self.batch * self.q_length * self.k_length * self.d // self.width
        rows = q_sized * self.q_length + k_sized * self.k_length
        return pl.CostEstimate(
            flops=2 * matmuls * logits * LANES,
            transcendentals=logits,
            bytes_accessed=self.batch * self.d * rows * self.bytes,
        )


def _rows(q_length: int, k_length: int) -> int:
    """Number of queries of a program; 0 if they do not fit."""
    if q_length * k_length <= MAX_LOGITS:
        return q_length
    fitting = (rows for rows in (1024, 512, 256, 128) if rows * k_length <= MAX_LOGITS)
    return next((rows for rows in fitting if q_length % rows == 0), 0)


def _tiles(total: int, logits: int) -> int:
    """Number of tiles of a program: several hide each other's latency.

    Args:
        total: number of tiles of the array.
        logits: of one tile.
    """
    fitting = (n for n in range(2, total + 1) if total % n == 0 and n * logits <= PROGRAM_LOGITS)
    return max(fitting, default=1)


def _forward_kernel(
    q_ref: Any, k_ref: Any, v_ref: Any, out_ref: Any, lse_ref: Any, *, width: int, causal: bool
) -> None:
    for tile in range(q_ref.shape[2] // LANES):
        lanes = slice(tile * LANES, (tile + 1) * LANES)
        q, k, v_t = q_ref[0, :, lanes], k_ref[0, :, lanes], v_ref[0, :, lanes].T
        # q: queries 128; k: keys 128; v_t: 128 keys
        out = []
        for head in range(LANES // width):
            q_head = (_mask_other_heads(q, head, width) * width**-0.5).astype(k.dtype)
            logits = _logits(q_head, k, causal)  # keys queries
            highest = jnp.max(logits, 0, keepdims=True)  # 1 queries
            weights = jnp.exp(logits - highest)
            total = jnp.sum(weights, 0, keepdims=True)
            values = _matmul(_head_rows(v_t, head, width), weights.astype(k.dtype))
            out.append(values / total)  # width queries
            lse = highest + jnp.log(total)
            lse_ref[0, tile, head, :] = pltpu.bitcast(lse, lse_ref.dtype)[0]
        out_ref[0, :, lanes] = pltpu.bitcast(jnp.concatenate(out).T.astype(k.dtype), out_ref.dtype)


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
    """Backward pass, appendix B.4 of arXiv 2205.14135; row blocks are the innermost loop."""

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        dk_sum_ref[...] = jnp.zeros_like(dk_sum_ref)
        dv_sum_ref[...] = jnp.zeros_like(dv_sum_ref)

    for tile in range(q_ref.shape[2] // LANES):
        lanes = slice(tile * LANES, (tile + 1) * LANES)
        q, k, v, d_out = (ref[0, :, lanes] for ref in (q_ref, k_ref, v_ref, d_out_ref))
        out = pltpu.bitcast(out_ref[0, :, lanes], q.dtype)
        k_t = k.T  # 128 keys
        out_d_out = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).T  # 128 queries
        dq = []
        for head in range(LANES // width):
            q_head = (_mask_other_heads(q, head, width) * width**-0.5).astype(k.dtype)
            d_out_head = _mask_other_heads(d_out, head, width).astype(k.dtype)
            lse = pltpu.bitcast(lse_ref[0, tile, head, :][None], jnp.float32)
            weights = jnp.exp(_logits(q_head, k, causal) - lse)  # keys queries
            dv_sum_ref[:, lanes] += _matmul(weights.astype(k.dtype), d_out_head)
            d_weights = _matmul(v, d_out_head, contract=(1, 1))  # keys queries
            d_total = jnp.sum(_head_rows(out_d_out, head, width), 0, keepdims=True)
            d_logits = (weights * (d_weights - d_total)).astype(k.dtype)
            dk_sum_ref[:, lanes] += _matmul(d_logits, q_head)
            dq.append(_matmul(_head_rows(k_t, head, width), d_logits))  # width queries
        dq_ref[0, :, lanes] = (jnp.concatenate(dq).T * width**-0.5).astype(dq_ref.dtype)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _() -> None:
        dk_ref[0] = dk_sum_ref[...].astype(dk_ref.dtype)
        dv_ref[0] = dv_sum_ref[...].astype(dv_ref.dtype)


def _logits(q: jax.Array, k: jax.Array, causal: bool) -> jax.Array:
    """(keys, queries), float32."""
    logits = _matmul(k, q, contract=(1, 1))
    if not causal:
        return logits
    key, query = (jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis) for axis in (0, 1))
    first = pl.program_id(2) * logits.shape[1]
    return jnp.where(key <= first + query, logits, -jnp.inf)


def _mask_other_heads(x: jax.Array, head: int, width: int) -> jax.Array:
    """(rows, 128) in float32, with zeros in the lanes of other heads."""
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    mine = (lane >= head * width) & (lane < (head + 1) * width)
    return jnp.where(mine, x.astype(jnp.float32), 0)


def _head_rows(x: jax.Array, head: int, width: int) -> jax.Array:
    """The rows of one head, in an array (128, columns) of stacked heads."""
    return x[head * width : (head + 1) * width]


def _matmul(a: jax.Array, b: jax.Array, contract: tuple[int, int] = (1, 0)) -> jax.Array:
    """Matmul accumulated in float32, contracting these axes of `a` and `b`."""
    axes = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)
