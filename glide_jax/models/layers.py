"""The layers all networks here are made of, initialized as PyTorch would initialize GLIDE's."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from glide_jax.config import GROUPS
from glide_jax.models import cpu
from glide_jax.models.placement import on_each_device, tpu_kind
from glide_jax.models.remat import save_always, save_matmul
from glide_jax.shapes import Timesteps

EPSILON = 1e-5
"""Added to the variance by every GroupNorm and LayerNorm."""


def draw(
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    distribution: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray],
) -> np.ndarray | jax.Array:
    """A parameter's initial value, float32, drawn by NumPy; see `Network.init` for why."""
    if isinstance(key, jax.core.Tracer):  # only the shape is asked for
        return jnp.zeros(shape, jnp.float32)
    words = np.asarray(jax.random.key_data(key))
    return distribution(np.random.default_rng(words), shape).astype(np.float32)


def normal(key: PRNGKeyArray, shape: tuple[int, ...], deviation: float) -> np.ndarray | jax.Array:
    """N(0, deviation^2)."""
    return draw(key, shape, lambda rng, shape: deviation * rng.standard_normal(shape, np.float32))


def _uniform_init(fan_in: int, zero: bool) -> dict[str, Any]:
    """PyTorch's default for weights and biases, U(-1/sqrt(fan_in), 1/sqrt(fan_in)), or zeros."""
    bound = 0.0 if zero else 1 / math.sqrt(fan_in)

    def init(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> np.ndarray | jax.Array:
        return draw(key, shape, lambda rng, shape: bound * (2 * rng.random(shape, np.float32) - 1))

    return {"kernel_init": init, "bias_init": init}


def add_bias(x: Float[Array, "*b c"], bias: Float[Array, "c"]) -> Float[Array, "*b c"]:
    """Their sum, computed in float32, and with it the bias's gradient, a sum over all of `x`.

    In bfloat16 that would be coarser, and TPUs take it together with other sums in float32 only.
    """
    return (x.astype(jnp.float32) + bias).astype(x.dtype)


class Linear(nnx.Linear):
    """A dense layer, float32 parameters and products in `dtype`."""

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """(..., d) to (..., d2), as nnx.Linear."""
        out = inputs.astype(self.dtype) @ self.kernel[...].astype(self.dtype)
        return save_matmul(out if self.bias is None else add_bias(out, self.bias[...]))


def linear(
    d_in: int, d_out: int, dtype: jnp.dtype, rngs: nnx.Rngs, *, zero: bool = False
) -> Linear:
    """A dense layer computed in `dtype`, with float32 parameters; `zero` starts it as zeros."""
    return Linear(d_in, d_out, dtype=dtype, rngs=rngs, **_uniform_init(d_in, zero))


class Conv(nnx.Conv):
    """A convolution of stride 1 that keeps height and width, in the quickest way where it runs."""

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """(b, h, w, c) to (b, h, w, c2), as nnx.Conv."""
        x, kernel = inputs.astype(self.dtype), self.kernel[...].astype(self.dtype)
        assert self.bias is not None
        if cpu.pays_to_shift(kernel, x.dtype):
            return save_matmul(cpu.shifted_matmuls(x, kernel, self.bias[...]))
        layout = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
        return save_matmul(add_bias(out, self.bias[...]))


def conv(
    c_in: int, c_out: int, size: int, dtype: jnp.dtype, rngs: nnx.Rngs, *, zero: bool = False
) -> Conv:
    """A `size` x `size` convolution of stride 1 that keeps height and width."""
    init = _uniform_init(c_in * size * size, zero)
    return Conv(c_in, c_out, (size, size), dtype=dtype, rngs=rngs, **init)


class LayerNorm(nnx.Module):
    """Layer normalization (arXiv 1607.06450) in float32, in two passes for precision."""

    def __init__(self, width: int) -> None:
        self.scale = nnx.Param(np.ones(width, np.float32))
        self.bias = nnx.Param(np.zeros(width, np.float32))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Of the last axis, in float32."""
        x = x.astype(jnp.float32)
        mean = save_always(jnp.mean(x, -1, keepdims=True))
        # The sum of squares is least about the mean: its gradient there is zero, and not computed.
        # (A second derivative would miss a term.)
        distance = x - jax.lax.stop_gradient(mean)
        variance = save_always(jnp.mean(jnp.square(distance), -1, keepdims=True))
        gain = jax.lax.rsqrt(variance + EPSILON) * self.scale[...]
        return (x - mean) * gain + self.bias[...]


class GroupNorm(nnx.Module):
    """Group normalization (arXiv 1803.08494), with an optional scale and shift.

    It is computed in float32 and rounded once, to what `x` is of: the backward pass then holds
    gradients of that precision. (The original rounds before the scale and shift as well.) Sums are
    taken per channel first and then over each group's channels, so that the large array is never
    reshaped; normalization, the parameters and the given scale and shift then become one
    multiplication and one addition per channel.
    """

    def __init__(self, channels: int) -> None:
        self.scale = nnx.Param(np.ones(channels, np.float32))
        self.bias = nnx.Param(np.zeros(channels, np.float32))

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        scale: Float[Array, "b c"] | None = None,
        shift: Float[Array, "b c"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """`norm(x) * (1 + scale) + shift`."""
        dtype, x = x.dtype, x.astype(jnp.float32)
        mean = save_always(_group_mean(jnp.mean(x, (1, 2))))  # b c
        mean_square = save_always(_group_mean(jnp.mean(x * x, (1, 2))))
        variance = jnp.maximum(mean_square - mean * mean, 0)
        gain = jax.lax.rsqrt(variance + EPSILON) * self.scale[...]
        offset = self.bias[...] - mean * gain
        if scale is not None and shift is not None:
            gain = gain * (1 + scale)
            offset = offset * (1 + scale) + shift
        return (x * gain[:, None, None, :] + offset[:, None, None, :]).astype(dtype)


def _group_mean(x: Float[Array, "b c"]) -> Float[Array, "b c"]:
    b, c = x.shape
    grouped = jnp.mean(x.reshape(b, GROUPS, c // GROUPS), -1)
    return jnp.repeat(grouped, c // GROUPS, axis=1)


def silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x times its logistic function, computed in float32."""
    return jax.nn.silu(x.astype(jnp.float32)).astype(x.dtype)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x times the normal distribution function at x, computed in float32 by erf, as PyTorch's.

    jax.nn.gelu's erfc is exact further into the tail, and costs a TPU more than the products.
    """
    precise = x.astype(jnp.float32)
    return (precise * (0.5 + 0.5 * jax.lax.erf(precise * 0.5**0.5))).astype(x.dtype)


def mlp(widen: Linear, narrow: Linear, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
    """A transformer's second half: GELU between two projections."""
    # Named as a product, since the gradient of the second reads it.
    return narrow(_apart(save_matmul(gelu(widen(x)))))


@jax.custom_vjp
def _apart(x: jax.Array) -> jax.Array:
    """`x`, which TPUs would otherwise compute anew for every tile of the product that it is for.

    Its gradient passes without a barrier: that is better computed with the product before it.
    """
    return jax.lax.optimization_barrier(x)


_apart.defvjp(lambda x: (_apart(x), None), lambda _, d_out: (d_out,))


def attend(
    q: Float[Array, "b q d"],
    k: Float[Array, "b l d"],
    v: Float[Array, "b l d"],
    heads: int,
    *,
    causal: bool = False,
) -> Float[Array, "b q d"]:
    """softmax(q k^T / sqrt(width of a head)) v, for all heads, which lie side by side in d.

    The softmax is in float32. `causal` hides from each position those after it.
    """
    if tpu := tpu_kind():
        # Here, since it brings Pallas, which is long to import, and other devices do without.
        from glide_jax.models import tpu_attention

        if tpu_attention.fits(tpu, q.shape[1], k.shape[1], q.shape[2] // heads, heads):
            return on_each_device(lambda *qkv: tpu_attention.attend(*qkv, heads, causal))(q, k, v)
    q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
    # As GLIDE does it: each is scaled, which keeps half-precision products small.
    scale = q.shape[-1] ** -0.25
    logits = jnp.einsum("bqnk,blnk->bnql", q * scale, k * scale, preferred_element_type=jnp.float32)
    if causal:
        logits = jnp.where(
            jnp.tri(logits.shape[-2], logits.shape[-1], dtype=bool), logits, -jnp.inf
        )
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bnql,blnk->bqnk", weights, v).reshape(*q.shape[:2], -1)


def project_to_heads(
    projection: Linear, x: Float[Array, "b l d"], heads: int, parts: int
) -> tuple[Float[Array, "b l d2"], ...]:
    """Queries, keys and values, each of all heads; the projection's columns are [head][part][k].

    The kernel is cut up, not what comes of it: TPUs would copy that to bring it in order.
    """
    assert projection.bias is not None
    d = x.shape[-1]
    kernel = projection.kernel[...].astype(x.dtype).reshape(d, heads, parts, -1)
    bias = projection.bias[...].reshape(heads, parts, -1)
    return tuple(
        save_matmul(add_bias(x @ kernel[:, :, part].reshape(d, -1), bias[:, part].reshape(-1)))
        for part in range(parts)
    )


def dropout(x: Float[Array, "b h w c"], rate: float, key: PRNGKeyArray) -> Float[Array, "b h w c"]:
    """Zeros with probability `rate`, and the rest scaled so that means stay (arXiv 1207.0580).

    Drawing a random word for every number, as nnx.Dropout does, and again wherever the backward
    pass needs it, costs a TPU as much as the convolutions. Here one word serves four channels, and
    is drawn once: each looks at 16 of its bits, beginning with 8 that are its own. So channels
    depend on each other only where those 8 do not decide, once in 256.

    Args:
        x: of a number of channels that 4 divides.
        rate: in [0, 1), rounded to a multiple of 2^-16.
        key: of this layer and step.
    """
    cut = round(rate * 2**16)
    words = jax.random.bits(key, (*x.shape[:-1], x.shape[-1] // 4), jnp.uint32)
    turned = (words, *(words << bits | words >> (32 - bits) for bits in (8, 16, 24)))
    # Without the barrier, TPUs would draw it anew wherever it is used.
    mask = jnp.concatenate([(word >> 16) >= cut for word in turned], -1)
    mask = jax.lax.optimization_barrier(save_always(mask))
    return jnp.where(mask, x / (1 - cut / 2**16), 0).astype(x.dtype)


def timestep_embedding(t: Timesteps, width: int) -> Float[Array, "b d"]:
    """Sinusoids `[cos | sin]` of t at `width`/2 frequencies from 1 down to 1/10000.

    Args:
        t: (b,) original step indices in [0, T).
        width: of the embedding, even.
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(10_000) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies  # b d/2
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
