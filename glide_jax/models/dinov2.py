"""DINOv2's vision transformers without registers (arXiv 2304.07193): ViT-S/14, B/14 and L/14."""

from functools import cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from glide_jax.models.layers import LayerNorm, gelu, normal
from glide_jax.models.network import Network
from glide_jax.models.platform import Platform
from glide_jax.models.vision_transformer import Block, patch_embedding

PIXEL_MEAN = (0.485, 0.456, 0.406)
"""Mean of each channel over ImageNet, in [0, 1]."""
PIXEL_STD = (0.229, 0.224, 0.225)
"""Per-channel standard deviation."""

PATCH_PX = 14

_OFFSET = 0.1
"""Added to the grid before its ratio is taken, as in the released code."""
_CUBIC = -0.75
"""Parameter of PyTorch's bicubic kernel."""


class DinoConfig(NamedTuple):
    """Sizes of a DINOv2."""

    width: int = 1024
    """Channels of the residual stream."""
    layers: int = 24
    """Transformer blocks."""
    heads: int = 16
    """Attention heads per block."""
    grid: int = 37
    """Rows and columns of patches for which positions are learned."""


class Dino(nnx.Module):
    """Images to features.

    Args:
        config: sizes.
        platform: of the program.
        rngs: initial values, for tests: it is not trained here.
    """

    def __init__(self, config: DinoConfig, platform: Platform, rngs: nnx.Rngs) -> None:
        width, self.grid = config.width, config.grid
        self.dtype = float32 = jnp.dtype("float32")
        self.class_embedding = nnx.Param(normal(rngs.params(), (1, 1, width), 0.02))
        self.position_embedding = nnx.Param(
            normal(rngs.params(), (1, 1 + config.grid**2, width), 0.02)
        )
        self.mask_embedding = nnx.Param(np.zeros((1, width), np.float32))  # of its training only
        self.patches = patch_embedding(width, PATCH_PX, True, float32, rngs)
        self.blocks = nnx.List(
            Block(
                *(width, config.heads, gelu, float32, platform, rngs),
                epsilon=1e-6,
                layer_scale=True,
            )
            for _ in range(config.layers)
        )
        self.norm_out = LayerNorm(width, 1e-6)

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> dict[str, Float[Array, "..."]]:
        """Features of images.

        Args:
            pixels: in [0, 1], normalized by PIXEL_MEAN and PIXEL_STD; h and w are multiples of
                PATCH_PX.

        Returns:
            `pool`: (b, d), of the class token.
            `patches`: (b, l, d), of all patches, row by row.
        """
        patches = self.patches(pixels)  # b h/14 w/14 d
        height, width = patches.shape[1:3]
        patches = patches.reshape(len(pixels), height * width, -1)  # b l d
        first = jnp.broadcast_to(self.class_embedding[...], (len(pixels), 1, patches.shape[-1]))
        x = jnp.concatenate([first, patches], 1) + self.positions(height, width)  # b 1+l d
        for block in self.blocks:
            x = block(x)
        x = self.norm_out(x)
        return {"pool": x[:, 0], "patches": x[:, 1:]}

    def positions(self, height: int, width: int) -> Float[Array, "1 l d"]:
        """Position embeddings of the class token and of a grid of patches, interpolated to it."""
        learned = self.position_embedding[...]
        if height == width == self.grid:
            return learned
        grid = learned[0, 1:].reshape(self.grid, self.grid, -1)
        rows, columns = (_interpolation(self.grid, size) for size in (height, width))
        grid = jnp.einsum("hi,wj,ijd->hwd", rows, columns, grid)  # h w d
        return jnp.concatenate([learned[:, :1], grid.reshape(1, height * width, -1)], 1)


def _interpolation(size: int, to: int) -> Float[np.ndarray, "to size"]:
    """Bicubic interpolation of `size` points to `to` as a matrix.

    As PyTorch's without antialiasing, for the ratio (to + 0.1) / size.
    """
    source = (np.arange(to) + 0.5) * size / (to + _OFFSET) - 0.5
    first = np.floor(source).astype(int) - 1
    matrix = np.zeros((to, size))
    for tap in range(4):
        distance = np.abs(source - (first + tap))
        near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
        far = _CUBIC * (((distance - 5) * distance + 8) * distance - 4)
        weight = np.where(distance <= 1, near, far)
        np.add.at(matrix, (np.arange(to), np.clip(first + tap, 0, size - 1)), weight)
    return matrix.astype(np.float32)


@cache
def dinov2(config: DinoConfig) -> Network[Dino]:
    """The network without parameters."""
    return Network(lambda rngs, platform: Dino(config, platform, rngs))


RELEASED = {
    "dinov2-vit-s-14": DinoConfig(384, 12, 6),
    "dinov2-vit-b-14": DinoConfig(768, 12, 12),
    "dinov2-vit-l-14": DinoConfig(1024, 24, 16),
}
"""Sizes by name."""
