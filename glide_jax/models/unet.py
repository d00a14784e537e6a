"""ADM's U-Net with GLIDE's text attention (arXiv 2105.05233, 2112.10741).

A level is a resolution. The input convolution and every encoder block push their output onto a
stack of skips; every decoder block pops one. Parameter names follow the figure of the U-Net:
`down`, `middle`, `up`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from glide_jax.config import Remat, UNetConfig
from glide_jax.models.convolution import Conv
from glide_jax.models.layers import GroupNorm, dropout, linear, project_to_heads, silu
from glide_jax.models.platform import Platform
from glide_jax.models.remat import block_input, offloading, recomputed, recomputed_part, save_matmul
from glide_jax.models.resampling import mean_pool, nearest_x2

OUT_CHANNELS = 6
"""eps (or v) and variance fraction, three each."""

Resample = Literal["none", "down", "up"]


class TextKV(NamedTuple):
    """Keys and values of the text for one attention layer; independent of x_t and t."""

    k: Float[Array, "b l d"]
    v: Float[Array, "b l d"]


class ResBlock(nnx.Module):
    """Residual block with adaptive group normalization ("AdaGN", section 3 of arXiv 2105.05233).

    The second norm is scaled and shifted by the embedding. A resampling block resamples h between
    the first activation and the first convolution, and the skip path too.

    Args:
        c_in: input channels.
        c_out: output channels.
        d_emb: width of the embedding.
        dropout_rate: in [0, 1).
        dtype: of the matmuls.
        platform: of the program.
        rngs: initial values.
        resample: mean pooling ("down") or nearest-neighbor upsampling ("up") by 2.
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
    ) -> None:
        conv = partial(Conv, dtype=dtype, rngs=rngs, convolve=platform.convolve)
        self.platform = platform
        self.resample = resample
        self.norm1 = GroupNorm(c_in)
        self.conv1 = conv(c_in, c_out, 3)
        self.emb = linear(d_emb, 2 * c_out, platform.embedding_dtype(dtype), rngs)
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

        Args:
            x: features.
            emb: embedding of time and text.
            key: of dropout; None switches dropout off.
        """
        h = self._resample(silu(self.norm1(x)))  # b h2 w2 c
        h = self.conv1(h)  # b h2 w2 c2
        emb = self.emb(jax.nn.silu(emb)).astype(jnp.float32)  # b 2*c2
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

    def project_text(self, text: Float[Array, "b l d"]) -> TextKV:
        """Keys and values of the text; the projection's columns are [head][k|v][k]."""
        return TextKV(
            *project_to_heads(self.text_kv, text, self.heads, 2, self.platform.split_kernels)
        )

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
        out = self.out(platform.attend(q, k, v, self.heads))  # b h*w c
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


def _block_factory(
    config: UNetConfig,
    d_emb: int,
    d_text: int,
    dtype: jnp.dtype,
    remat: Remat,
    platform: Platform,
    rngs: nnx.Rngs,
) -> Callable[..., Block]:
    """`(c_in, c_out, attends, resample="none", up=False) -> Block`."""
    settings: dict[str, Any] = {"dtype": dtype, "platform": platform, "rngs": rngs}
    res = partial(ResBlock, d_emb=d_emb, dropout_rate=config.dropout, **settings)

    def block(
        c_in: int, c_out: int, attends: bool, resample: Resample = "none", up: bool = False
    ) -> Block:
        return Block(
            remat,
            res(c_in=c_in, c_out=c_out, resample=resample),
            AttentionBlock(c_out, config.head_width, d_text, **settings) if attends else None,
            res(c_in=c_out, c_out=c_out, resample="up") if up else None,
        )

    return block


class UNet(nnx.Module):
    """The U-Net.

    Args:
        config: sizes.
        in_channels: of x_t and the conditioning concatenated after it.
        d_emb: width of the embedding of time and text.
        d_text: width of the text features.
        dtype: of the matmuls.
        remat: rematerialization policy.
        platform: of the program.
        rngs: initial values.
    """

    def __init__(
        self,
        config: UNetConfig,
        in_channels: int,
        d_emb: int,
        d_text: int,
        dtype: jnp.dtype,
        remat: Remat,
        platform: Platform,
        rngs: nnx.Rngs,
    ) -> None:
        self.dtype = dtype
        self.emb_dtype = platform.embedding_dtype(dtype)
        self.remat = remat
        self.platform = platform
        conv = partial(Conv, rngs=rngs, convolve=platform.convolve)
        block = _block_factory(config, d_emb, d_text, dtype, remat, platform, rngs)
        levels = [
            (config.channels * mult, config.resolution_px >> level in config.attention_px)
            for level, mult in enumerate(config.channel_mult)
        ]
        c, _ = levels[0]
        self.conv_in = conv(in_channels, c, 3, dtype)
        skips, down = [c], []
        for level, (width, attends) in enumerate(levels):
            for _ in range(config.res_blocks):
                down.append(block(c, width, attends))
                c = width
                skips.append(c)
            if level < len(levels) - 1:
                down.append(block(c, c, False, "down"))
                skips.append(c)
        self.down = nnx.List(down)

        self.middle = nnx.List([block(c, c, True), block(c, c, False)])

        up = []
        for level, (width, attends) in reversed(list(enumerate(levels))):
            for i in range(config.res_blocks + 1):
                last = i == config.res_blocks
                up.append(block(c + skips.pop(), width, attends, up=level > 0 and last))
                c = width
        self.up = nnx.List(up)

        self.norm_out = GroupNorm(c)
        self.conv_out = conv(c, OUT_CHANNELS, 3, jnp.dtype("float32"), zero=True)

    def _blocks(self) -> Iterator[Block]:
        yield from self.down
        yield from self.middle
        yield from self.up

    def project_text(self, text: Float[Array, "b l d"]) -> tuple[TextKV | None, ...]:
        """Every block's text keys and values; None for a block without attention."""
        text = text.astype(self.dtype)
        return tuple(
            None if block.attention is None else block.attention.project_text(text)
            for block in self._blocks()
        )

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        emb: Float[Array, "b d"],
        text: tuple[TextKV | None, ...],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b h w 6"]:
        """Run the U-Net.

        Args:
            x: x_t and its conditioning.
            emb: embedding of time and text.
            text: from `project_text`.
            key: of dropout; None switches dropout off.
        """
        run = offloading(self._through_blocks, self.remat)
        h = run(x, emb.astype(self.emb_dtype), text, key)  # b h w c2
        return self.conv_out(silu(self.norm_out(h.astype(jnp.float32))))  # b h w 6

    def _through_blocks(
        self,
        x: Float[Array, "b h w c"],
        emb: Float[Array, "b d"],
        text: tuple[TextKV | None, ...],
        key: PRNGKeyArray | None,
    ) -> Float[Array, "b h w c2"]:
        texts = iter(text)
        calls = 0

        def run(block: Block, h: jax.Array, skip: jax.Array | None = None) -> jax.Array:
            nonlocal calls
            block_key = None if key is None else jax.random.fold_in(key, calls)
            calls += 1
            call = recomputed(block.__call__, self.remat)
            h = block_input(self.platform.constrain_batch(h))
            return call(h, skip, emb, next(texts), block_key)

        h = self.conv_in(x)  # b h w c2
        skips = [h]
        for block in self.down:
            h = run(block, h)  # b h w c3, or b h/2 w/2 c3
            skips.append(h)
        for block in self.middle:
            h = run(block, h)
        for block in self.up:
            h = run(block, h, skips.pop())  # b h w c3, or b 2h 2w c3
        return h
