"""The text transformer inside every GLIDE model (section 2.1, arXiv 2112.10741)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from glide_jax.config import Remat, TextConfig
from glide_jax.models.layers import (
    LayerNorm,
    attend,
    linear,
    mlp,
    normal,
    project_to_heads,
)
from glide_jax.models.remat import run_equal_blocks
from glide_jax.shapes import TokenMask, Tokens


class SelfAttention(nnx.Module):
    """Bidirectional multi-head attention without a mask."""

    def __init__(self, width: int, heads: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.qkv = linear(width, 3 * width, dtype, rngs)
        self.out = linear(width, width, dtype, rngs)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """One attention over all positions; the projection's columns are [head][q|k|v][k]."""
        q, k, v = project_to_heads(self.qkv, x, self.heads, parts=3)
        return self.out(attend(q, k, v, self.heads))


class TransformerBlock(nnx.Module):
    """Pre-norm residual attention and MLP (4 wide, exact GELU)."""

    def __init__(self, width: int, heads: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.norm1 = LayerNorm(width)
        self.attention = SelfAttention(width, heads, dtype, rngs)
        self.norm2 = LayerNorm(width)
        self.mlp_in = linear(width, 4 * width, dtype, rngs)
        self.mlp_out = linear(4 * width, width, dtype, rngs)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """x + attention(norm(x)), then the same with the MLP."""
        x = x + self.attention(self.norm1(x).astype(x.dtype))
        return x + mlp(self.mlp_in, self.mlp_out, self.norm2(x).astype(x.dtype))


class TextTransformer(nnx.Module):
    """Captions to features, one a position.

    A padding position carries a learned embedding of its own in place of token and position, so
    tokens under the padding mask change nothing, and the empty caption is a learned input.

    Embeddings start as N(0, 1): PyTorch's default, which the released code has for tokens; the
    others it leaves undefined. They must not be small, as CLIP's are: attention's first output, the
    same at every position, would drown them, and the model learn which words a caption holds but
    hardly ever how they belong together.
    """

    def __init__(self, config: TextConfig, dtype: jnp.dtype, remat: Remat, rngs: nnx.Rngs) -> None:
        self.dtype = dtype
        self.remat = remat

        def embedding(rows: int) -> nnx.Param:
            return nnx.Param(normal(rngs.params(), (rows, config.width), 1.0))

        self.token_embedding = embedding(config.vocab_size)
        self.position_embedding = embedding(config.length)
        self.padding_embedding = embedding(config.length)
        self.blocks = nnx.List(
            [
                TransformerBlock(config.width, config.heads, dtype, rngs)
                for _ in range(config.layers)
            ]
        )
        self.final_norm = LayerNorm(config.width)

    def __call__(self, tokens: Tokens, mask: TokenMask) -> Float[Array, "b l d"]:
        """Features of every position, in float32.

        Args:
            tokens: (b, l) ids below the vocabulary size; l is exactly the configured length.
            mask: (b, l) True where `tokens` is caption.
        """
        embedded = self.token_embedding[...][tokens] + self.position_embedding[...]
        x = jnp.where(mask[..., None], embedded, self.padding_embedding[...])
        x = x.astype(self.dtype)
        return self.final_norm(run_equal_blocks(self.blocks, x, self.remat))
