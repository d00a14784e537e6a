"""ADM's U-Net with GLIDE's text attention (arXiv 2105.05233, 2112.10741).

A level is a resolution. The input convolution and every encoder block push their output onto a
stack of skips; every decoder block pops one. Parameter names follow the figure of the U-Net:
`down`, `middle`, `up`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from glide_jax.config import Remat, UNetConfig
from glide_jax.models.convolution import Conv
from glide_jax.models.layers import GroupNorm, silu
from glide_jax.models.platform import Platform
from glide_jax.models.remat import block_input, offloading, recomputed
from glide_jax.models.unet_blocks import AttentionBlock, Block, Resample, ResBlock, TextKV


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
    adds = config.embedding == "add"
    res = partial(
        ResBlock, d_emb=d_emb, dropout_rate=config.dropout, adds_embedding=adds, **settings
    )

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
        out_channels: eps (or v) and, unless the variance is fixed, its fraction: three each.
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
        out_channels: int,
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

        self.middle = nnx.List([block(c, c, config.middle_attention), block(c, c, False)])

        up = []
        for level, (width, attends) in reversed(list(enumerate(levels))):
            for i in range(config.res_blocks + 1):
                last = i == config.res_blocks
                up.append(block(c + skips.pop(), width, attends, up=level > 0 and last))
                c = width
        self.up = nnx.List(up)

        self.norm_out = GroupNorm(c)
        self.conv_out = conv(c, out_channels, 3, jnp.dtype("float32"), zero=True)

    def _blocks(self) -> Iterator[Block]:
        yield from self.down
        yield from self.middle
        yield from self.up

    def project_text(
        self, text: Float[Array, "b l d"], mask: Bool[Array, "b l"] | None = None
    ) -> tuple[TextKV | None, ...]:
        """Every block's text keys and values; None for a block without attention.

        Args:
            text: features.
            mask: True for the tokens that pixels attend to; all by default.
        """
        text = text.astype(self.dtype)
        return tuple(
            None if block.attention is None else block.attention.project_text(text, mask)
            for block in self._blocks()
        )

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        emb: Float[Array, "b d"],
        text: tuple[TextKV | None, ...],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b h w c4"]:
        """Run the U-Net.

        Args:
            x: x_t and its conditioning.
            emb: embedding of time and text.
            text: from `project_text`.
            key: of dropout; None switches dropout off.
        """
        run = offloading(self._through_blocks, self.remat)
        h = run(x, emb.astype(self.emb_dtype), text, key)  # b h w c2
        return self.conv_out(silu(self.norm_out(h.astype(jnp.float32))))  # b h w c4

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
