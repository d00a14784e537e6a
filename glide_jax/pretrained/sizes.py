"""Kind and sizes of a released checkpoint's model, from the names and shapes of its tensors.

Some settings do not follow from shapes, such as the width of attention heads and the image
resolution: `UnstoredSettings` has them, with the released values as defaults.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from glide_jax.config import (
    ClipConfig,
    ClipImageConfig,
    ClipTextConfig,
    ModelConfig,
    TextConfig,
    UNetConfig,
)
from glide_jax.config.bounds import Between
from glide_jax.config.model import HEADS, MAX_PX, WIDTHS
from glide_jax.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a checkpoint's tensors by their original names."""

KIND_BY_CHANNELS = {3: "base", 7: "base-inpaint", 6: "upsample", 10: "upsample-inpaint"}
"""Kind of a denoiser by input channels: x_t (3), known pixels and mask (4), low_res (3)."""
CLIP_TEXT_FILE, CLIP_IMAGE_FILE = "clip text", "clip image"
"""Kinds of the two files of a CLIP."""

_CONV_IN = "input_blocks.0.0.weight"
_TOKENS, _PATCHES = "blocks.input.w_voc", "blocks.input.patch_proj"
_UPSAMPLING_BLOCK = r"output_blocks\.(\d+)\.[12]\.in_layers\.0\.weight"


@dataclass(frozen=True)
class UnstoredSettings:
    """Settings that a checkpoint's tensors do not determine; defaults are the released values."""

    text_heads: Annotated[int, HEADS] = 8
    """Attention heads of the text transformer, GLIDE's or CLIP's."""
    image_heads: Annotated[int, HEADS] = 12
    """Attention heads of CLIP's image tower."""
    head_width: Annotated[int, WIDTHS] = 64
    """Channels of one attention head of a U-Net."""
    base_px: Annotated[int, Between(1, MAX_PX)] = 64
    """Resolution of a base model's images, and of an upsampler's low-resolution images."""
    upsample_px: Annotated[int, Between(1, MAX_PX)] = 256
    """Resolution of an upsampler's images."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the matmuls."""


def kind_of(shapes: Shapes) -> str:
    """Kind of a file: a value of KIND_BY_CHANNELS, CLIP_TEXT_FILE or CLIP_IMAGE_FILE.

    Raises:
        UserError: it is none of them.
    """
    if _TOKENS in shapes:
        return CLIP_TEXT_FILE
    if _PATCHES in shapes:
        return CLIP_IMAGE_FILE
    if _CONV_IN not in shapes:
        raise UserError(
            "neither a GLIDE model nor a noised CLIP: it has none of "
            f"{_CONV_IN}, {_TOKENS}, {_PATCHES}"
        )
    channels = _size(shapes, _CONV_IN, 1, 4)
    if channels not in KIND_BY_CHANNELS:
        raise UserError(
            f"{_CONV_IN} has {channels} input channels, but GLIDE's models have "
            f"{', '.join(map(str, KIND_BY_CHANNELS))}"
        )
    return KIND_BY_CHANNELS[channels]


def denoiser_sizes(shapes: Shapes, unstored: UnstoredSettings) -> ModelConfig:
    """Sizes of a base model or an upsampler.

    Raises:
        UserError: a tensor is missing or has an impossible shape, or `unstored` does not fit.
    """
    kind = kind_of(shapes)
    upsamples = kind.startswith("upsample")
    resolution = unstored.upsample_px if upsamples else unstored.base_px
    blocks_up = _count(shapes, r"output_blocks\.(\d+)\.")
    resampling = [
        int(match[1]) for name in shapes if (match := re.fullmatch(_UPSAMPLING_BLOCK, name))
    ]
    blocks_per_level = min(resampling, default=blocks_up - 1) + 1
    if blocks_per_level < 2 or blocks_up % blocks_per_level:
        raise UserError(
            f"{blocks_up} output_blocks do not divide into levels of {blocks_per_level}: not a "
            "GLIDE U-Net"
        )
    channels = _size(shapes, "time_embed.0.weight", 1, 2)
    starts = [1 + level * blocks_per_level for level in range(blocks_up // blocks_per_level)]
    widths = [_size(shapes, f"input_blocks.{i}.0.out_layers.3.weight", 0, 4) for i in starts]
    return ModelConfig(
        text=TextConfig(
            vocab_size=_size(shapes, "token_embedding.weight", 0, 2),
            length=_size(shapes, "positional_embedding", 0, 2),
            width=_size(shapes, "positional_embedding", 1, 2),
            layers=_count(shapes, r"transformer\.resblocks\.(\d+)\."),
            heads=unstored.text_heads,
        ),
        unet=UNetConfig(
            resolution_px=resolution,
            channels=channels,
            channel_mult=tuple(width // channels for width in widths),
            res_blocks=blocks_per_level - 1,
            attention_px=tuple(
                resolution >> level
                for level, i in enumerate(starts)
                if f"input_blocks.{i}.1.qkv.weight" in shapes
            ),
            head_width=unstored.head_width,
        ),
        low_res_px=unstored.base_px if upsamples else 0,
        inpaint=kind.endswith("inpaint"),
        dtype=unstored.dtype,
    )


def clip_sizes(text: Shapes, image: Shapes, unstored: UnstoredSettings) -> ClipConfig:
    """Sizes of a noised CLIP, from its two files.

    Raises:
        UserError: as `denoiser_sizes`.
    """
    patch = _size(image, _PATCHES, 2, 4)
    side = math.isqrt(_size(image, "blocks.input.w_pos", 0, 2) - 1)
    return ClipConfig(
        text=ClipTextConfig(
            vocab_size=_size(text, _TOKENS, 0, 2),
            length=_size(text, "blocks.input.w_pos", 0, 2),
            width=_size(text, _TOKENS, 1, 2),
            layers=_count(text, r"blocks\.block_(\d+)\."),
            heads=unstored.text_heads,
        ),
        image=ClipImageConfig(
            resolution_px=side * patch,
            patch_px=patch,
            width=_size(image, _PATCHES, 0, 4),
            layers=_count(image, r"blocks\.block_(\d+)\."),
            heads=unstored.image_heads,
        ),
        embedding_width=_size(text, "blocks.output.f.w", 0, 2),
        steps=_size(image, "blocks.input.w_t", 0, 2),
        dtype=unstored.dtype,
    )


def _size(shapes: Shapes, name: str, axis: int, dimensions: int) -> int:
    """A size of a tensor. Raises UserError if it is missing or has other dimensions."""
    if name not in shapes:
        raise UserError(f"the weights lack {name}")
    shape = tuple(shapes[name])
    if len(shape) != dimensions or 0 in shape:
        raise UserError(f"{name} has shape {shape}, but {dimensions} dimensions are needed")
    return shape[axis]


def _count(shapes: Shapes, pattern: str) -> int:
    """Number of distinct values of the pattern's group among the names."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})
