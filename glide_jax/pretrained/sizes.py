"""What a released checkpoint is, and its model's sizes, read from its tensors' names and shapes.

Not everything shows in a shape. How wide an attention head is and how large the images are does
not: there the released values hold, unless the caller knows better.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from glide_jax.config import (
    ClipConfig,
    ClipImageConfig,
    ClipTextConfig,
    ModelConfig,
    TextConfig,
    UNetConfig,
)
from glide_jax.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]
"""Of a checkpoint's tensors, by their original names."""

CHANNELS_IN = {3: "base", 7: "base-inpaint", 6: "upsample", 10: "upsample-inpaint"}
"""Input channels of a U-Net tell what it is for: x_t, known pixels and mask, smaller image."""
CLIP_TEXT_FILE, CLIP_IMAGE_FILE = "clip text", "clip image"

_CONV_IN = "input_blocks.0.0.weight"
_TOKENS, _PATCHES = "blocks.input.w_voc", "blocks.input.patch_proj"
_RESAMPLING_ON_THE_WAY_UP = r"output_blocks\.(\d+)\.[12]\.in_layers\.0\.weight"


@dataclass(frozen=True)
class Unseen:
    """What shapes do not show; the defaults are those of the released models."""

    text_heads: int = 8
    """Of the text transformer, GLIDE's or CLIP's."""
    image_heads: int = 12
    """Of CLIP's image tower."""
    head_width: int = 64
    """Channels of one attention head of a U-Net."""
    base_px: int = 64
    """Side of a base model's images, and of the smaller images that an upsampler sees."""
    upsample_px: int = 256
    """Side of an upsampler's images."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the matmuls."""


def kind_of(shapes: Shapes) -> str:
    """What a file is: a value of CHANNELS_IN, CLIP_TEXT_FILE or CLIP_IMAGE_FILE.

    Raises:
        UserError: none of them.
    """
    if _TOKENS in shapes:
        return CLIP_TEXT_FILE
    if _PATCHES in shapes:
        return CLIP_IMAGE_FILE
    if _CONV_IN not in shapes:
        raise UserError(
            f"not a GLIDE model or a noised CLIP: it has none of {_CONV_IN}, {_TOKENS}, {_PATCHES}"
        )
    channels = _size(shapes, _CONV_IN, 1, 4)
    if channels not in CHANNELS_IN:
        raise UserError(
            f"{_CONV_IN} takes {channels} channels, but GLIDE's models take "
            f"{', '.join(map(str, CHANNELS_IN))}"
        )
    return CHANNELS_IN[channels]


def denoiser_sizes(shapes: Shapes, unseen: Unseen) -> ModelConfig:
    """The sizes of a base model or an upsampler.

    Raises:
        UserError: a tensor that tells them is missing or cannot be, or `unseen` does not fit.
    """
    kind = kind_of(shapes)
    upsamples = kind.startswith("upsample")
    resolution = unseen.upsample_px if upsamples else unseen.base_px
    blocks_up = _count(shapes, r"output_blocks\.(\d+)\.")
    resampling = [
        int(match[1]) for name in shapes if (match := re.fullmatch(_RESAMPLING_ON_THE_WAY_UP, name))
    ]
    blocks_a_level = min(resampling, default=blocks_up - 1) + 1
    if blocks_a_level < 2 or blocks_up % blocks_a_level:
        raise UserError(
            f"{blocks_up} output_blocks do not make levels of {blocks_a_level}: not a GLIDE U-Net"
        )
    channels = _size(shapes, "time_embed.0.weight", 1, 2)
    starts = [1 + level * blocks_a_level for level in range(blocks_up // blocks_a_level)]
    widths = [_size(shapes, f"input_blocks.{i}.0.out_layers.3.weight", 0, 4) for i in starts]
    return ModelConfig(
        text=TextConfig(
            vocab_size=_size(shapes, "token_embedding.weight", 0, 2),
            length=_size(shapes, "positional_embedding", 0, 2),
            width=_size(shapes, "positional_embedding", 1, 2),
            layers=_count(shapes, r"transformer\.resblocks\.(\d+)\."),
            heads=unseen.text_heads,
        ),
        unet=UNetConfig(
            resolution_px=resolution,
            channels=channels,
            channel_mult=tuple(width // channels for width in widths),
            res_blocks=blocks_a_level - 1,
            attention_px=tuple(
                resolution >> level
                for level, i in enumerate(starts)
                if f"input_blocks.{i}.1.qkv.weight" in shapes
            ),
            head_width=unseen.head_width,
        ),
        low_res_px=unseen.base_px if upsamples else 0,
        inpaint=kind.endswith("inpaint"),
        dtype=unseen.dtype,
    )


def clip_sizes(text: Shapes, image: Shapes, unseen: Unseen) -> ClipConfig:
    """The sizes of a noised CLIP, from its two files.

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
            heads=unseen.text_heads,
        ),
        image=ClipImageConfig(
            resolution_px=side * patch,
            patch_px=patch,
            width=_size(image, _PATCHES, 0, 4),
            layers=_count(image, r"blocks\.block_(\d+)\."),
            heads=unseen.image_heads,
        ),
        embedding_width=_size(text, "blocks.output.f.w", 0, 2),
        steps=_size(image, "blocks.input.w_t", 0, 2),
        dtype=unseen.dtype,
    )


def _size(shapes: Shapes, name: str, axis: int, dimensions: int) -> int:
    """A size of a tensor. Raises UserError if it is missing or of another kind."""
    if name not in shapes:
        raise UserError(f"the weights lack {name}")
    shape = tuple(shapes[name])
    if len(shape) != dimensions or 0 in shape:
        raise UserError(f"{name} has shape {shape}, but {dimensions} dimensions are needed")
    return shape[axis]


def _count(shapes: Shapes, pattern: str) -> int:
    """How many numbers the pattern's group takes."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})
