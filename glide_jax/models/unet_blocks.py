"""The blocks of the U-Net: residual, attention, and one step of the encoder or decoder."""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from glide_jax.config import Remat
from glide_jax.models.convolution import Conv
from glide_jax.models.layers import GroupNorm, dropout, linear, project_to_heads, silu
from glide_jax.models.platform import Platform
from glide_jax.models.remat import recomputed_part, save_matmul
from glide_jax.models.resampling import mean_pool, nearest_x2

Resample = Literal["none", "down", "up"]


class TextKV(NamedTuple):
    """Keys and values of the text for one attention layer; independent of x_t and t."""

    k: Float[Array, "b l d"]
    v: Float[Array, "b l d"]
    mask: Bool[Array, "b l"] | None = None
    """True for the tokens that pixels attend to; None for all."""

    def after(self, first: "TextKV") -> "TextKV":
        """Those of `first`, none of which is masked, before these."""
        mask = self.mask
        if mask is not None:
            seen = jnp.ones(first.k.shape[:2], bool)
            mask = jnp.concatenate([seen, mask], 1)  # b l+l2
        k, v = (jnp.concatenate(pair, 1) for pair in ((first.k, self.k), (first.v, self.v)))
        return TextKV(k, v, mask)


class ResBlock(nnx.Module):
    """Residual block with adaptive group normalization ("AdaGN", section 3 of arXiv 2105.05233).

    The second norm is scaled and shifted by the embedding, or the embedding is added before it. A
    resampling block resamples h between the first activation and the first convolution, and the
    skip path too.

    Args:
        c_in: input channels.
        c_out: output channels.
        d_emb: width of the embedding.
        dropout_rate: in [0, 1).
        dtype: of the matmuls.
        platform: of the program.
        rngs: initial values.
        resample: mean pooling ("down") or nearest-neighbor upsampling ("up") by 2.
        adds_embedding: add the embedding before the second norm, instead of scale and shift.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        d_emb: int,
        dropout_rate: float,
        dtype: jnp.dtype,
        platform: Platform,
        rngs: nnx.Rngs,
        resample: Resample = "none",
        adds_embedding: bool = False,
    ) -> None:
        conv = partial(Conv, dtype=dtype, rngs=rngs, convolve=platform.convolve)
        self.platform = platform
        self.resample = resample
        self.norm1 = GroupNorm(c_in)
        self.conv1 = conv(c_in, c_out, 3)
        self.adds_embedding = adds_embedding
        d_out = c_out if adds_embedding else 2 * c_out
        self.emb = linear(d_emb, d_out, platform.embedding_dtype(dtype), rngs)
        self.norm2 = GroupNorm(c_out)
        self.dropout_rate = dropout_rate
        self.conv2 = conv(c_out, c_out, 3, zero=True)
        self.skip = None if c_in == c_out else conv(c_in, c_out, 1)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        emb: Float[Array, "b d"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b h2 w2 c2"]:
        """skip(x) + conv2(silu(norm2(conv1(silu(norm1(x)))) * (1 + scale) + shift)).

        With `adds_embedding`, skip(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + emb))).

        Args:
            x: features.
            emb: embedding of time and text.
            key: of dropout; None switches dropout off.
        """
        h = self._resample(silu(self.norm1(x)))  # b h2 w2 c
        h = self.conv1(h)  # b h2 w2 c2
        emb = self.emb(jax.nn.silu(emb)).astype(jnp.float32)  # b c2, or b 2*c2
        if self.adds_embedding:
            h = silu(self.norm2(h + emb[:, None, None].astype(h.dtype)))
        else:
            scale, shift = jnp.split(emb, 2, axis=-1)  # b c2
            h = silu(self.norm2(h, scale, shift))
        if key is not None and self.dropout_rate:
            h = dropout(h, self.dropout_rate, key)
        x = self._resample(x)  # b h2 w2 c
        return self.conv2(h) + (x if self.skip is None else self.skip(x))  # b h2 w2 c2

    def _resample(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        if self.resample == "none":
            return x
        resample = mean_pool if self.resample == "down" else nearest_x2
        # The compiler loses the batch's sharding in the reshaping: without the constraint, every
        # chip of a pod gathered all examples for a convolution's gradient.
        return self.platform.constrain_batch(resample(x, self.platform.repeat_x2))


class AttentionBlock(nnx.Module):
    """Attention of the pixels to text and pixels; text keys and values come first.

    Args:
        channels: of input and output.
        head_width: channels of a head.
        d_text: width of the text features.
        dtype: of the matmuls.
        platform: of the program.
        rngs: initial values.
    """

    def __init__(
        self,
        channels: int,
        head_width: int,
        d_text: int,
        dtype: jnp.dtype,
        platform: Platform,
        rngs: nnx.Rngs,
    ) -> None:
        self.heads = channels // head_width
        self.platform = platform
        self.norm = GroupNorm(channels)
        dense = partial(linear, dtype=dtype, rngs=rngs, matmul=platform.matmul)
        self.qkv = dense(channels, 3 * channels)
        self.text_kv = dense(d_text, 2 * channels)
        self.out = dense(channels, channels, zero=True)

    def project_text(
        self, text: Float[Array, "b l d"], mask: Bool[Array, "b l"] | None = None
    ) -> TextKV:
        """Keys and values of the text; the projection's columns are [head][k|v][k]."""
        k, v = project_to_heads(self.text_kv, text, self.heads, 2, self.platform.split_kernels)
        return TextKV(k, v, mask)

    def __call__(self, x: Float[Array, "b h w c"], text: TextKV) -> Float[Array, "b h w c"]:
        """x + attention(norm(x)); the projection's columns are [head][q|k|v][k]."""
        b, h, w, c = x.shape
        platform = self.platform
        pixels = platform.row_major(self.norm(x).reshape(b, h * w, c))  # b h*w c
        q, k, v = project_to_heads(
            self.qkv, pixels, self.heads, 3, platform.split_kernels
        )  # b h*w c
        k = save_matmul(jnp.concatenate([text.k, k], 1))  # b l+h*w c
        v = save_matmul(jnp.concatenate([text.v, v], 1))  # b l+h*w c
        mask = text.mask
        if mask is not None:
            mask = jnp.concatenate([mask, jnp.ones((b, h * w), bool)], 1)  # b l+h*w
        out = self.out(platform.attend(q, k, v, self.heads, mask=mask))  # b h*w c
        return x + platform.row_major(out).reshape(b, h, w, c)


class Block(nnx.Module):
    """One step of the encoder or decoder: residual block, optional attention and upsampling."""

    def __init__(
        self,
        remat: Remat,
        res: ResBlock,
        attention: AttentionBlock | None = None,
        up: ResBlock | None = None,
    ) -> None:
        self.remat = remat
        self.res = res
        self.attention = attention
        self.up = up

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        skip: Float[Array, "b h w c3"] | None,
        emb: Float[Array, "b d"],
        text: TextKV | None,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "b h2 w2 c2"]:
        """Run the block.

        Args:
            x: features.
            skip: in the decoder, the features to concatenate to x.
            emb: embedding of time and text.
            text: this block's text keys and values, if it attends.
            key: of dropout; None switches dropout off.
        """
        res_key, up_key = (None, None) if key is None else jax.random.split(key)
        if skip is not None:  # here, so that recomputed blocks need not keep the concatenation
            x = jnp.concatenate([x, skip], -1)  # b h w c+c3
        x = recomputed_part(self.res.__call__, self.remat)(x, emb, res_key)  # b h w c2
        if self.attention is not None and text is not None:
            x = recomputed_part(self.attention.__call__, self.remat)(x, text)
        return x if self.up is None else self.up(x, emb, up_key)  # b h2 w2 c2
