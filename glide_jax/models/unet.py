"""ADM's U-Net with GLIDE's text attention (arXiv 2105.05233, 2112.10741).

A level is a resolution. Every block's output on the way down is kept on a stack of skips; every
block on the way up takes one off. The names follow the drawing: `down`, `middle`, `up`.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from glide_jax.config import Remat, UNetConfig
from glide_jax.models.layers import (
    GroupNorm,
    attend,
    conv,
    dropout,
    linear,
    project_to_heads,
    silu,
)
from glide_jax.models.placement import constrain_batch, row_major, tpu_kind
from glide_jax.models.remat import block_input, offloading, recomputed, recomputed_part, save_matmul

OUT_CHANNELS = 6
"""eps and variance fraction, three each."""


class TextKV(NamedTuple):
    """One attention layer's keys and values of the text: they do not depend on x_t."""

    k: Float[Array, "b l d"]
    v: Float[Array, "b l d"]


@jax.custom_vjp
def mean_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Halves height and width by 2x2 means."""
    return (_sums_of_2x2(x) / 4).astype(x.dtype)


@jax.custom_vjp
def nearest_x2(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Doubles height and width by repeating pixels, which are numbers of floating point."""
    if not tpu_kind():
        b, h, w, c = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
        return x.reshape(b, 2 * h, 2 * w, c)

    # The largest of four images whose gaps are -inf: TPUs do that faster, and others slower.
    def spread(down: int, right: int) -> jax.Array:
        rows, columns = (down, 1 - down, 1), (right, 1 - right, 1)
        gap = jnp.array(-jnp.inf, x.dtype)
        return jax.lax.pad(x, gap, ((0, 0, 0), rows, columns, (0, 0, 0)))

    upper, lower = (jnp.maximum(spread(row, 0), spread(row, 1)) for row in (0, 1))
    return jnp.maximum(upper, lower)


def _sums_of_2x2(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """In float32. A TPU adds four slices faster than it sums over axes of length 2."""
    x = x.astype(jnp.float32)
    return x[:, ::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, ::2] + x[:, 1::2, 1::2]


mean_pool.defvjp(lambda x: (mean_pool(x), None), lambda _, d_out: (nearest_x2(d_out / 4),))
nearest_x2.defvjp(
    lambda x: (nearest_x2(x), None), lambda _, d_out: (_sums_of_2x2(d_out).astype(d_out.dtype),)
)


RESAMPLE = {
    "none": lambda x: x,
    "down": lambda x: constrain_batch(mean_pool(x)),
    "up": lambda x: constrain_batch(nearest_x2(x)),
}
"""Each device resamples its part of the batch. The compiler, which loses track of it in the
reshaping, had every chip of a pod gather the whole batch for a convolution's gradient."""


class ResBlock(nnx.Module):
    """Residual block whose second norm is scaled and shifted by the embedding ("AdaGN").

    A resampling block resamples h between the first activation and the first convolution, and
    the skip path likewise.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        d_emb: int,
        dropout_rate: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        resample: str = "none",
    ) -> None:
        self.resample = resample
        self.norm1 = GroupNorm(c_in)
        self.conv1 = conv(c_in, c_out, 3, dtype, rngs)
        self.emb = linear(d_emb, 2 * c_out, dtype, rngs)
        self.norm2 = GroupNorm(c_out)
        self.dropout_rate = dropout_rate
        self.conv2 = conv(c_out, c_out, 3, dtype, rngs, zero=True)
        self.skip = None if c_in == c_out else conv(c_in, c_out, 1, dtype, rngs)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        emb: Float[Array, "b d"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b h2 w2 c2"]:
        """Args: the input, the embedding of time and text, and a key to switch dropout on."""
        resample = RESAMPLE[self.resample]
        h = self.conv1(resample(silu(self.norm1(x))))
        scale, shift = jnp.split(self.emb(jax.nn.silu(emb)).astype(jnp.float32), 2, axis=-1)
        h = silu(self.norm2(h, scale, shift))
        if key is not None and self.dropout_rate:
            h = dropout(h, self.dropout_rate, key)
        x = resample(x)
        return self.conv2(h) + (x if self.skip is None else self.skip(x))


class AttentionBlock(nnx.Module):
    """Attention of all pixels to the text and to each other; text keys and values come first."""

    def __init__(
        self, channels: int, head_width: int, d_text: int, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        self.heads = channels // head_width
        self.norm = GroupNorm(channels)
        self.qkv = linear(channels, 3 * channels, dtype, rngs)
        self.text_kv = linear(d_text, 2 * channels, dtype, rngs)
        self.out = linear(channels, channels, dtype, rngs, zero=True)

    def project_text(self, text: Float[Array, "b l d"]) -> TextKV:
        """Keys and values of the text; the projection's columns are [head][k|v][k]."""
        return TextKV(*project_to_heads(self.text_kv, text, self.heads, parts=2))

    def __call__(self, x: Float[Array, "b h w c"], text: TextKV) -> Float[Array, "b h w c"]:
        """x + attention(norm(x)); the projection's columns are [head][q|k|v][k]."""
        b, h, w, c = x.shape
        pixels = row_major(self.norm(x).reshape(b, h * w, c))
        q, k, v = project_to_heads(self.qkv, pixels, self.heads, parts=3)
        k = save_matmul(jnp.concatenate([text.k, k], 1))
        v = save_matmul(jnp.concatenate([text.v, v], 1))
        return x + row_major(self.out(attend(q, k, v, self.heads))).reshape(b, h, w, c)


class Block(nnx.Module):
    """One step on the way down or up: residual block, attention where asked for, resampling up."""

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
        """Args: the input, on the way up the skip that is concatenated to it, the embedding, this
        block's text keys and values, a dropout key.
        """
        res_key, up_key = (None, None) if key is None else jax.random.split(key)
        if skip is not None:  # here, that recomputing blocks need not keep the concatenation
            x = jnp.concatenate([x, skip], -1)
        x = recomputed_part(self.res.__call__, self.remat)(x, emb, res_key)
        if self.attention is not None and text is not None:
            x = recomputed_part(self.attention.__call__, self.remat)(x, text)
        return x if self.up is None else self.up(x, emb, up_key)


class UNet(nnx.Module):
    """The U-Net.

    Args:
        config: sizes.
        in_channels: of x_t and whatever conditioning is concatenated after it.
        d_emb: width of the embedding of time and text.
        d_text: width of the text features.
        dtype: of the matmuls.
        remat: what the backward pass recomputes.
    """

    def __init__(
        self,
        config: UNetConfig,
        in_channels: int,
        d_emb: int,
        d_text: int,
        dtype: jnp.dtype,
        remat: Remat,
        rngs: nnx.Rngs,
    ) -> None:
        self.dtype = dtype
        self.remat = remat

        def res(c_in: int, c_out: int, resample: str = "none") -> ResBlock:
            return ResBlock(c_in, c_out, d_emb, config.dropout, dtype, rngs, resample)

        def attention(channels: int) -> AttentionBlock:
            return AttentionBlock(channels, config.head_width, d_text, dtype, rngs)

        block = partial(Block, remat)

        widths = [config.channels * mult for mult in config.channel_mult]
        attended = [
            config.resolution_px >> level in config.attention_px for level in range(len(widths))
        ]
        last = len(widths) - 1

        c = widths[0]
        self.conv_in = conv(in_channels, c, 3, dtype, rngs)
        skips = [c]
        down = []
        for level, width in enumerate(widths):
            for _ in range(config.res_blocks):
                down.append(block(res(c, width), attention(width) if attended[level] else None))
                c = width
                skips.append(c)
            if level < last:
                down.append(block(res(c, c, "down")))
                skips.append(c)
        self.down = nnx.List(down)

        self.middle = nnx.List([block(res(c, c), attention(c)), block(res(c, c))])

        up = []
        for level, width in reversed(list(enumerate(widths))):
            for i in range(config.res_blocks + 1):
                up.append(
                    block(
                        res(c + skips.pop(), width),
                        attention(width) if attended[level] else None,
                        res(width, width, "up") if level and i == config.res_blocks else None,
                    )
                )
                c = width
        self.up = nnx.List(up)

        self.norm_out = GroupNorm(c)
        self.conv_out = conv(c, OUT_CHANNELS, 3, jnp.dtype("float32"), rngs, zero=True)

    def _blocks(self) -> Iterator[Block]:
        yield from self.down
        yield from self.middle
        yield from self.up

    def project_text(self, text: Float[Array, "b l d"]) -> tuple[TextKV | None, ...]:
        """Every block's text keys and values, None for a block that does not attend."""
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
        """Args: x_t with its conditioning, the embedding, `project_text`'s result, dropout key."""
        h = offloading(self._through_blocks, self.remat)(x, emb.astype(self.dtype), text, key)
        return self.conv_out(silu(self.norm_out(h.astype(jnp.float32))))

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
            return call(block_input(h), skip, emb, next(texts), block_key)

        h = self.conv_in(x)
        skips = [h]
        for block in self.down:
            h = run(block, h)
            skips.append(h)
        for block in self.middle:
            h = run(block, h)
        for block in self.up:
            h = run(block, h, skips.pop())
        return h
