"""Layers without convolutions or attention; initial values are those of PyTorch's defaults."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from glide_jax.config import GROUPS
from glide_jax.models.matmul import Matmul, matmul
from glide_jax.models.remat import save_always, save_matmul
from glide_jax.shapes import Timesteps

EPSILON = 1e-5
"""Added to the variance in GroupNorm and LayerNorm."""


# Initial values

InitialValue = np.ndarray | jax.ShapeDtypeStruct


def draw(
    key: PRNGKeyArray | None,
    shape: tuple[int, ...],
    distribution: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray],
) -> InitialValue:
    """A parameter's initial value, float32, drawn by NumPy; `Network.init` says why.

    Without a key, only its shape and type.
    """
    if key is None:
        return jax.ShapeDtypeStruct(shape, jnp.float32)
    words = np.asarray(jax.random.key_data(key))
    return distribution(np.random.default_rng(words), shape).astype(np.float32)


def normal(key: PRNGKeyArray | None, shape: tuple[int, ...], std: float) -> InitialValue:
    """N(0, std^2)."""
    return draw(key, shape, lambda rng, shape: std * rng.standard_normal(shape, np.float32))


def uniform(
    key: PRNGKeyArray | None, shape: tuple[int, ...], dtype: Any, *, bound: float
) -> InitialValue:
    """U(-bound, bound), as an initializer of flax.nnx."""
    return draw(key, shape, lambda rng, shape: bound * (2 * rng.random(shape, np.float32) - 1))


def uniform_init(fan_in: int, zero: bool) -> dict[str, Any]:
    """PyTorch's default for weights and biases, U(-1/sqrt(fan_in), 1/sqrt(fan_in)), or zeros."""
    init = partial(uniform, bound=0.0 if zero else 1 / math.sqrt(fan_in))
    return {"kernel_init": init, "bias_init": init}


# Linear layers


def add_bias(x: Float[Array, "*b c"], bias: Float[Array, "c"]) -> Float[Array, "*b c"]:
    """x + bias, computed in float32, as is the bias's gradient, a sum over `x`'s other axes.

    In bfloat16 that sum would be less precise, and TPUs fuse it with other sums in float32 only.
    """
    return (x.astype(jnp.float32) + bias).astype(x.dtype)


class Linear(nnx.Linear):
    """A dense layer, computed in `dtype`; its kernel is float32 or stored in `dtype`.

    Args:
        d_in: input width.
        d_out: output width.
        matmul: the platform's implementation.
        options: of nnx.Linear.
    """

    def __init__(self, d_in: int, d_out: int, *, matmul: Matmul = matmul, **options: Any) -> None:
        super().__init__(d_in, d_out, **options)
        self.matmul = matmul

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """(..., d) to (..., d2), as nnx.Linear."""
        x, kernel = inputs.astype(self.dtype), self.kernel[...].astype(self.dtype)
        out = self.matmul(x, kernel)  # ... d2
        return save_matmul(out if self.bias is None else add_bias(out, self.bias[...]))


def linear(
    d_in: int,
    d_out: int,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
    *,
    matmul: Matmul = matmul,
    zero: bool = False,
) -> Linear:
    """A `Linear` with PyTorch's initial values, or zeros."""
    init = uniform_init(d_in, zero)
    return Linear(d_in, d_out, matmul=matmul, dtype=dtype, rngs=rngs, **init)


def project_to_heads(
    projection: Linear, x: Float[Array, "b l d"], heads: int, parts: int, split_kernel: bool
) -> tuple[Float[Array, "b l d2"], ...]:
    """Queries, keys and values, or some of them, with the heads side by side in d2.

    Args:
        projection: its columns are [head][part][k].
        x: features.
        heads: number of heads.
        parts: 3 for queries, keys and values; 2 for keys and values.
        split_kernel: whether to split the kernel rather than the output: faster in training, but
            sampling would split it again in every step.
    """
    if not split_kernel:
        out = projection(x).reshape(*x.shape[:2], heads, parts, -1)  # b l n parts k
        return tuple(out[..., part, :].reshape(*x.shape[:2], -1) for part in range(parts))
    assert projection.bias is not None
    d = x.shape[-1]
    kernel = projection.kernel[...].astype(x.dtype).reshape(d, heads, parts, -1)  # d n parts k
    bias = projection.bias[...].reshape(heads, parts, -1)  # n parts k
    return tuple(
        save_matmul(
            add_bias(
                projection.matmul(x, kernel[:, :, part].reshape(d, -1)), bias[:, part].reshape(-1)
            )
        )
        for part in range(parts)
    )


# Normalization


class LayerNorm(nnx.Module):
    """Layer normalization (arXiv 1607.06450) in float32, in two passes for precision.

    Args:
        width: of the normalized axis.
        epsilon: added to the variance.
    """

    def __init__(self, width: int, epsilon: float = EPSILON) -> None:
        self.epsilon = epsilon
        self.scale = nnx.Param(np.ones(width, np.float32))
        self.bias = nnx.Param(np.zeros(width, np.float32))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Normalize the last axis; the output is float32."""
        x = x.astype(jnp.float32)
        mean = save_always(jnp.mean(x, -1, keepdims=True))  # *b 1
        # The variance does not change with the mean to first order: that gradient is zero, and is
        # skipped. (A second derivative would lack a term.)
        distance = x - jax.lax.stop_gradient(mean)
        variance = save_always(jnp.mean(jnp.square(distance), -1, keepdims=True))  # *b 1
        gain = jax.lax.rsqrt(variance + self.epsilon) * self.scale[...]  # *b d
        return (x - mean) * gain + self.bias[...]


class GroupNorm(nnx.Module):
    """Group normalization (arXiv 1803.08494), with an optional scale and shift.

    Computed in float32 and rounded once, to the input's type; the backward pass then holds
    gradients of that type. (The original also rounds before the scale and shift.) Sums are taken
    over pixels first, then over each group's channels, so that the large array is never reshaped.
    Normalization, parameters, scale and shift become one multiplication and addition per channel.
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
        mean_square = save_always(_group_mean(jnp.mean(x * x, (1, 2))))  # b c
        variance = jnp.maximum(mean_square - mean * mean, 0)
        gain = jax.lax.rsqrt(variance + EPSILON) * self.scale[...]
        offset = self.bias[...] - mean * gain
        if scale is not None and shift is not None:
            gain = gain * (1 + scale)
            offset = offset * (1 + scale) + shift
        return (x * gain[:, None, None, :] + offset[:, None, None, :]).astype(dtype)  # b h w c


def _group_mean(x: Float[Array, "b c"]) -> Float[Array, "b c"]:
    b, c = x.shape
    grouped = jnp.mean(x.reshape(b, GROUPS, c // GROUPS), -1)  # b groups
    return jnp.repeat(grouped, c // GROUPS, axis=1)  # b c


# Activations, dropout, embeddings


def silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x sigmoid(x), computed in float32."""
    return jax.nn.silu(x.astype(jnp.float32)).astype(x.dtype)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x Phi(x), Phi the normal distribution function, computed in float32 by erf as in PyTorch.

    jax.nn.gelu's erfc is exact further into the tail, and costs a TPU more than the matmuls.
    """
    precise = x.astype(jnp.float32)
    return (precise * (0.5 + 0.5 * jax.lax.erf(precise * 0.5**0.5))).astype(x.dtype)


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x sigmoid(1.702 x), computed in float32: OpenAI CLIP's approximation of GELU."""
    precise = x.astype(jnp.float32)
    return (precise * jax.nn.sigmoid(1.702 * precise)).astype(x.dtype)


Activation = Callable[[jax.Array], jax.Array]


def mlp(
    widen: Linear, narrow: Linear, x: Float[Array, "b l d"], activation: Activation = gelu
) -> Float[Array, "b l d"]:
    """A transformer's MLP: an activation between two linear layers."""
    # Saved like a matmul, because the gradient of the second layer's kernel reads it.
    hidden = save_matmul(activation(widen(x)))  # b l 4d
    return narrow(_materialize(hidden))


@jax.custom_vjp
def _materialize(x: jax.Array) -> jax.Array:
    """`x`, which TPUs would otherwise recompute for every tile of the matmul that reads it.

    No barrier for the gradient: it is better fused with the matmul before it.
    """
    return jax.lax.optimization_barrier(x)


_materialize.defvjp(lambda x: (_materialize(x), None), lambda _, d_out: (d_out,))


def dropout(x: Float[Array, "b h w c"], rate: float, key: PRNGKeyArray) -> Float[Array, "b h w c"]:
    """Zeros with probability `rate`, all else scaled to keep the mean (arXiv 1207.0580).

    A random word for every number, as in nnx.Dropout, drawn again wherever the backward pass needs
    it, costs a TPU as much as the convolutions. Here one word serves four channels and is drawn
    once: each channel compares 16 of its bits, the first 8 of which are its own. So channels
    depend on each other only where those 8 bits do not decide, once in 256.

    Args:
        x: the number of channels is a multiple of 4.
        rate: in [0, 1), rounded to a multiple of 2^-16.
        key: of this layer and step.
    """
    threshold = round(rate * 2**16)
    words = jax.random.bits(key, (*x.shape[:-1], x.shape[-1] // 4), jnp.uint32)  # b h w c/4
    rotated = (words, *(words << bits | words >> (32 - bits) for bits in (8, 16, 24)))
    mask = jnp.concatenate([(word >> 16) >= threshold for word in rotated], -1)  # b h w c
    # Without the barrier, TPUs would draw the mask again at every use.
    mask = jax.lax.optimization_barrier(save_always(mask))
    return jnp.where(mask, x / (1 - threshold / 2**16), 0).astype(x.dtype)


def timestep_embedding(t: Timesteps, width: int) -> Float[Array, "b d"]:
    """Sinusoids `[cos | sin]` of t at `width`/2 frequencies from 1 down to 1/10000.

    Args:
        t: (b,) original step indices in [0, T).
        width: of the embedding, even.
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(10_000) * jnp.arange(half, dtype=jnp.float32) / half)  # d/2
    angles = t.astype(jnp.float32)[:, None] * frequencies  # b d/2
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)  # b d
