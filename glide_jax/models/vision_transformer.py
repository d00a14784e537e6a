"""Transformers of published image encoders: OpenAI CLIP's towers and DINOv2."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from glide_jax.models.layers import EPSILON, Activation, LayerNorm, linear, mlp, uniform_init
from glide_jax.models.platform import Platform


class Block(nnx.Module):
    """Pre-norm residual attention and MLP (4 times as wide).

    Args:
        width: channels of the residual stream.
        heads: of attention.
        activation: of the MLP.
        dtype: of the matmuls.
        platform: of the program.
        rngs: initial values.
        causal: whether a position attends only to itself and those before it.
        epsilon: of the norms.
        layer_scale: whether each residual is multiplied by learned factors (arXiv 2103.17239).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        activation: Activation,
        dtype: jnp.dtype,
        platform: Platform,
        rngs: nnx.Rngs,
        *,
        causal: bool = False,
        epsilon: float = EPSILON,
        layer_scale: bool = False,
    ) -> None:
        self.heads, self.causal, self.activation = heads, causal, activation
        self.platform = platform
        dense = partial(linear, dtype=dtype, rngs=rngs, matmul=platform.matmul)
        self.norm1 = LayerNorm(width, epsilon)
        self.qkv = dense(width, 3 * width)
        self.out = dense(width, width)
        self.norm2 = LayerNorm(width, epsilon)
        self.mlp_in = dense(width, 4 * width)
        self.mlp_out = dense(4 * width, width)
        if layer_scale:
            self.scale1 = nnx.Param(np.ones(width, np.float32))
            self.scale2 = nnx.Param(np.ones(width, np.float32))
        self.layer_scale = layer_scale

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """x + attention(norm(x)), then x + mlp(norm(x)); qkv's columns are [q|k|v][head][k]."""
        q, k, v = jnp.split(self.qkv(self.norm1(x).astype(x.dtype)), 3, -1)  # b l d
        h = self.out(self.platform.attend(q, k, v, self.heads, causal=self.causal))
        x = x + (h * self.scale1[...].astype(h.dtype) if self.layer_scale else h)
        h = mlp(self.mlp_in, self.mlp_out, self.norm2(x).astype(x.dtype), self.activation)
        return x + (h * self.scale2[...].astype(h.dtype) if self.layer_scale else h)


def patch_embedding(width: int, patch_px: int, bias: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
    """A convolution of square patches, whose sides are its strides."""
    size = (patch_px, patch_px)
    options: dict[str, Any] = {"strides": size, "padding": "VALID", "use_bias": bias}
    init = uniform_init(3 * patch_px**2, False)
    return nnx.Conv(3, width, size, **options, dtype=dtype, rngs=rngs, **init)
