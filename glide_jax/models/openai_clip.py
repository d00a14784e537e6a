"""OpenAI's CLIP (arXiv 2103.00020) with vision transformers: ViT-B/32, B/16 and L/14.

It scores images against captions, and its embeddings and text states condition other models. The
noised CLIP that guides GLIDE is in clip.py: its activation, biases and inputs differ.
"""

from functools import cache

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from glide_jax.config import ClipConfig, ClipImageConfig, ClipTextConfig
from glide_jax.models.layers import LayerNorm, normal, quick_gelu
from glide_jax.models.network import Network
from glide_jax.models.platform import Platform
from glide_jax.models.vision_transformer import Block, patch_embedding
from glide_jax.shapes import Image, TextStates, TokenMask, Tokens

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of each channel over CLIP's training images, in [0, 1]."""
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
"""Per-channel standard deviation."""


class OpenAIClip(nnx.Module):
    """Both towers and the scale of their similarities.

    Args:
        config: sizes; `steps` and `remat` do not apply.
        platform: of the program.
        rngs: initial values, for tests: training a CLIP from scratch is `models.clip`.
    """

    def __init__(self, config: ClipConfig, platform: Platform, rngs: nnx.Rngs) -> None:
        dtype = jnp.dtype(config.dtype)
        self.text = TextTower(config.text, config.embedding_width, dtype, platform, rngs)
        self.image = ImageTower(config.image, config.embedding_width, dtype, platform, rngs)
        self.logit_scale = nnx.Param(np.float32(np.log(1 / 0.07)))

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> dict[str, Float[Array, "b d"]]:
        """Features of images for metrics: `pool`, as `encode_image`."""
        return {"pool": self.encode_image(pixels)}

    def encode_text(self, tokens: Tokens) -> Float[Array, "b d"]:
        """Embeddings of captions, not normalized."""
        return self.text(tokens)[0]

    def encode_image(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Embeddings of images, not normalized.

        Args:
            pixels: in [0, 1], normalized by PIXEL_MEAN and PIXEL_STD.
        """
        return self.image(pixels)

    def embed_image(self, image: Image) -> Float[Array, "b d"]:
        """`encode_image` of images in [-1, 1]."""
        pixels = (image + 1) / 2
        return self.encode_image((pixels - jnp.array(PIXEL_MEAN)) / jnp.array(PIXEL_STD))

    def embed_text(self, tokens: Tokens, mask: TokenMask) -> TextStates:
        """Embeddings of captions, not normalized, and their states, for unCLIP.

        Args:
            tokens: start, text, end, then any ids below the end token's, which is the largest.
            mask: True from the start token to the end token.
        """
        return TextStates(*self.text(tokens), mask)


class TextTower(nnx.Module):
    """Captions to embeddings: a causal transformer, read at the end token."""

    def __init__(
        self,
        config: ClipTextConfig,
        d_embedding: int,
        dtype: jnp.dtype,
        platform: Platform,
        rngs: nnx.Rngs,
    ) -> None:
        width = config.width
        self.dtype = dtype
        self.token_embedding = _param(rngs, config.vocab_size, width)
        self.position_embedding = _param(rngs, config.length, width)
        self.blocks = nnx.List(
            Block(width, config.heads, quick_gelu, dtype, platform, rngs, causal=True)
            for _ in range(config.layers)
        )
        self.norm_out = LayerNorm(width)
        self.projection = _param(rngs, width, d_embedding)

    def __call__(self, tokens: Tokens) -> tuple[Float[Array, "b d"], Float[Array, "b l d2"]]:
        """Embeddings, and the normalized states of all positions.

        Args:
            tokens: start, text, end, then any ids below the end token's, which is the largest.
        """
        x = self.token_embedding[...][tokens] + self.position_embedding[...]  # b l d2
        x = x.astype(self.dtype)
        for block in self.blocks:
            x = block(x)
        states = self.norm_out(x)  # b l d2
        end = jnp.argmax(tokens, -1)[:, None, None]  # b 1 1
        feature = jnp.take_along_axis(states, end, 1)[:, 0]  # b d2
        return feature @ self.projection[...].astype(jnp.float32), states


class ImageTower(nnx.Module):
    """Images to embeddings: a vision transformer, read at its class token."""

    def __init__(
        self,
        config: ClipImageConfig,
        d_embedding: int,
        dtype: jnp.dtype,
        platform: Platform,
        rngs: nnx.Rngs,
    ) -> None:
        width = config.width
        self.dtype = dtype
        self.patches = patch_embedding(width, config.patch_px, False, dtype, rngs)
        self.class_embedding = nnx.Param(normal(rngs.params(), (width,), width**-0.5))
        positions = 1 + (config.resolution_px // config.patch_px) ** 2
        self.position_embedding = _param(rngs, positions, width)
        self.norm_in = LayerNorm(width)
        self.blocks = nnx.List(
            Block(width, config.heads, quick_gelu, dtype, platform, rngs)
            for _ in range(config.layers)
        )
        self.norm_out = LayerNorm(width)
        self.projection = _param(rngs, width, d_embedding)

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """See `OpenAIClip.encode_image`."""
        patches = self.patches(pixels)  # b h/patch w/patch d2
        patches = patches.reshape(len(pixels), -1, patches.shape[-1])  # b l-1 d2
        first = jnp.broadcast_to(self.class_embedding[...], (len(pixels), 1, patches.shape[-1]))
        x = jnp.concatenate([first, patches], 1) + self.position_embedding[...]  # b l d2
        x = self.norm_in(x).astype(self.dtype)
        for block in self.blocks:
            x = block(x)
        return self.norm_out(x[:, 0]) @ self.projection[...].astype(jnp.float32)


def _param(rngs: nnx.Rngs, rows: int, width: int) -> nnx.Param:
    return nnx.Param(normal(rngs.params(), (rows, width), width**-0.5))


@cache
def openai_clip(config: ClipConfig) -> Network[OpenAIClip]:
    """The network without parameters."""
    return Network(lambda rngs, platform: OpenAIClip(config, platform, rngs))


def vit(
    patch_px: int, width: int, layers: int, text_width: int, embedding_width: int
) -> ClipConfig:
    """Sizes of a released CLIP for images of 224 px, with heads of 64 channels."""
    return ClipConfig(
        text=ClipTextConfig(49_408, 77, text_width, 12, text_width // 64),
        image=ClipImageConfig(224, patch_px, width, layers, width // 64),
        embedding_width=embedding_width,
        steps=1,
        dtype="float32",
        architecture="openai",
    )


RELEASED = {
    "clip-vit-b-32": vit(32, 768, 12, 512, 512),
    "clip-vit-b-16": vit(16, 768, 12, 512, 512),
    "clip-vit-l-14": vit(14, 1024, 24, 768, 768),
}
"""Sizes by name (table 20 of arXiv 2103.00020)."""
