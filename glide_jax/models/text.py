"""The text transformer inside every GLIDE model (section 2.1, arXiv 2112.10741)."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from glide_jax.config import Remat, TextConfig
from glide_jax.models.layers import LayerNorm, linear, mlp, normal, project_to_heads
from glide_jax.models.platform import Platform
from glide_jax.models.scan_blocks import apply_blocks
from glide_jax.shapes import TokenMask, Tokens


class KV(NamedTuple):
    """Keys and values of positions in one layer."""

    k: Float[Array, "b l d"]
    v: Float[Array, "b l d"]


class SelfAttention(nnx.Module):
    """Multi-head attention; GLIDE's has no mask."""

    def __init__(
        self,
        width: int,
        heads: int,
        dtype: jnp.dtype,
        platform: Platform,
        rngs: nnx.Rngs,
        causal: bool = False,
    ) -> None:
        self.heads = heads
        self.causal = causal
        self.platform = platform
        self.qkv = linear(width, 3 * width, dtype, rngs, matmul=platform.matmul)
        self.out = linear(width, width, dtype, rngs, matmul=platform.matmul)

    def __call__(
        self, x: Float[Array, "b l d"], mask: Bool[Array, "b l"] | None = None
    ) -> Float[Array, "b l d"]:
        """Attention among positions; the projection's columns are [head][q|k|v][k].

        Args:
            x: features.
            mask: True for the positions that are seen; all by default.
        """
        return self.extend(x, mask)[0]

    def extend(
        self,
        x: Float[Array, "b l d"],
        mask: Bool[Array, "b l2"] | None = None,
        before: KV | None = None,
    ) -> tuple[Float[Array, "b l d"], KV]:
        """The call for positions after others, whose keys and values are known.

        Args:
            x: features of the new positions.
            mask: of all positions.
            before: those before, if any.

        Returns:
            The result, and keys and values of all positions.
        """
        q, k, v = project_to_heads(self.qkv, x, self.heads, 3, self.platform.split_kernels)  # b l d
        if before is not None:
            k, v = jnp.concatenate([before.k, k], 1), jnp.concatenate([before.v, v], 1)  # b l2 d
        out = self.platform.attend(q, k, v, self.heads, causal=self.causal, mask=mask)
        return self.out(out), KV(k, v)


class TransformerBlock(nnx.Module):
    """Pre-norm residual attention and MLP (4 times as wide, exact GELU)."""

    def __init__(
        self,
        width: int,
        heads: int,
        dtype: jnp.dtype,
        platform: Platform,
        rngs: nnx.Rngs,
        causal: bool = False,
    ) -> None:
        self.norm1 = LayerNorm(width)
        self.attention = SelfAttention(width, heads, dtype, platform, rngs, causal)
        self.norm2 = LayerNorm(width)
        self.mlp_in = linear(width, 4 * width, dtype, rngs, matmul=platform.matmul)
        self.mlp_out = linear(4 * width, width, dtype, rngs, matmul=platform.matmul)

    def __call__(
        self, x: Float[Array, "b l d"], mask: Bool[Array, "b l"] | None = None
    ) -> Float[Array, "b l d"]:
        """x + attention(norm(x)), then x + mlp(norm(x))."""
        return self.extend(x, mask)[0]

    def extend(
        self,
        x: Float[Array, "b l d"],
        mask: Bool[Array, "b l2"] | None = None,
        before: KV | None = None,
    ) -> tuple[Float[Array, "b l d"], KV]:
        """The call for positions after others: see `SelfAttention.extend`."""
        attended, kv = self.attention.extend(self.norm1(x).astype(x.dtype), mask, before)
        x = x + attended
        return x + mlp(self.mlp_in, self.mlp_out, self.norm2(x).astype(x.dtype)), kv


class TextTransformer(nnx.Module):
    """Captions to features, one per position.

    A padding position carries its own learned embedding in place of token and position. Tokens
    under the padding mask therefore change nothing, and the empty caption is a learned input.

    Embeddings start as N(0, 1): PyTorch's default, which the released code has for tokens; it
    leaves the others uninitialized. With embeddings as small as CLIP's, attention's first output,
    equal at every position, would dominate them: the model would learn which words a caption
    contains, but hardly ever which attribute belongs to which object.

    Args:
        config: sizes.
        dtype: of the matmuls.
        remat: rematerialization policy.
        platform: of the program.
        rngs: initial values.
    """

    def __init__(
        self,
        config: TextConfig,
        dtype: jnp.dtype,
        remat: Remat,
        platform: Platform,
        rngs: nnx.Rngs,
    ) -> None:
        self.dtype = dtype
        self.remat = remat
        self.platform = platform

        def embedding(rows: int) -> nnx.Param:
            return nnx.Param(normal(rngs.params(), (rows, config.width), 1.0))

        self.token_embedding = embedding(config.vocab_size)
        self.position_embedding = embedding(config.length)
        self.padding_embedding = embedding(config.length)
        self.blocks = nnx.List(
            [
                TransformerBlock(config.width, config.heads, dtype, platform, rngs)
                for _ in range(config.layers)
            ]
        )
        self.final_norm = LayerNorm(config.width)

    def __call__(self, tokens: Tokens, mask: TokenMask) -> Float[Array, "b l d"]:
        """Features of every position, float32.

        Args:
            tokens: (b, l) ids below the vocabulary size; l is the configured length.
            mask: (b, l) True where `tokens` holds caption.
        """
        embedded = self.token_embedding[...][tokens] + self.position_embedding[...]  # b l d
        x = jnp.where(mask[..., None], embedded, self.padding_embedding[...])  # b l d
        x = apply_blocks(self.blocks, x.astype(self.dtype), self.remat, self.platform)
        return self.final_norm(x)
