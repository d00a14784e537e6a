"""Kind of a released checkpoint, and sizes of GLIDE's models, from names and shapes of tensors.

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
"""Kinds of the two files of a noised CLIP."""
KARLO_PRIOR_FILE, KARLO_STATISTICS_FILE = "Karlo's prior", "Karlo's CLIP statistics"
"""Kinds of the two files of Karlo's prior."""
KARLO_DECODER_FILE, KARLO_SR_FILE = "Karlo's decoder", "Karlo's super-resolution"
OPENAI_CLIP_FILE, TRANSFORMERS_CLIP_FILE = "OpenAI's CLIP", "transformers' CLIP"

_CONV_IN = "input_blocks.0.0.weight"
_TOKENS, _PATCHES = "blocks.input.w_voc", "blocks.input.patch_proj"
_MARKS = {
    _TOKENS: CLIP_TEXT_FILE,
    _PATCHES: CLIP_IMAGE_FILE,
    "model.prd_emb": KARLO_PRIOR_FILE,
    "model.cf_param": KARLO_DECODER_FILE,
    "model_first_steps.input_blocks.0.0.weight": KARLO_SR_FILE,
    "visual.conv1.weight": OPENAI_CLIP_FILE,
    "vision_model.embeddings.patch_embedding.weight": TRANSFORMERS_CLIP_FILE,
}
"""A tensor that only files of this kind have."""
_UPSAMPLING_BLOCK = r"output_blocks\.(\d+)\.[12]\.in_layers\.0\.weight"


@dataclass(frozen=True)
class UnstoredSettings:
    """Settings that a checkpoint's tensors do not determine; defaults are the released values."""

    text_heads: Annotated[int, HEADS] = 8
    """Attention heads of the text transformer, GLIDE's or CLIP's."""
    image_heads: Annotated[int, HEADS] = 12
    """Attention heads of CLIP's image tower."""
    head_width: Annotated[int, WIDTHS] = 64
    """Channels of one attention head of a U-Net, of unCLIP's prior and of OpenAI's CLIP."""
    text_length: Annotated[int, Between(1, 2**16)] = 77
    """Context length of the CLIP whose text states unCLIP's decoder reads, in tokens."""
    base_px: Annotated[int, Between(1, MAX_PX)] = 64
    """Resolution of images of a base model or decoder, and of an upsampler's low-resolution
    images."""
    upsample_px: Annotated[int, Between(1, MAX_PX)] = 256
    """Resolution of an upsampler's images."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the matmuls."""


def kind_of(shapes: Shapes) -> str:
    """Kind of a file: a value of KIND_BY_CHANNELS or one of the *_FILE above.

    Raises:
        UserError: it is none of them.
    """
    for name, kind in _MARKS.items():
        if name in shapes:
            return kind
    if set(shapes) == {"0", "1"}:
        return KARLO_STATISTICS_FILE
    if _CONV_IN not in shapes:
        raise UserError(
            "neither a GLIDE model, nor one of Karlo's, nor a CLIP: it has none of "
            f"{', '.join((_CONV_IN, *_MARKS))}"
        )
    channels = size_of(shapes, _CONV_IN, 1, 4)
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
    return ModelConfig(
        text=TextConfig(
            vocab_size=size_of(shapes, "token_embedding.weight", 0, 2),
            length=size_of(shapes, "positional_embedding", 0, 2),
            width=size_of(shapes, "positional_embedding", 1, 2),
            layers=count_of(shapes, r"transformer\.resblocks\.(\d+)\."),
            heads=unstored.text_heads,
        ),
        unet=unet_sizes(shapes, resolution, unstored.head_width),
        low_res_px=unstored.base_px if upsamples else 0,
        inpaint=kind.endswith("inpaint"),
        dtype=unstored.dtype,
    )


def unet_sizes(shapes: Shapes, resolution: int, head_width: int) -> UNetConfig:
    """Sizes of a U-Net with OpenAI's names.

    Args:
        shapes: of its tensors, and of others.
        resolution: of its images, in pixels.
        head_width: channels of an attention head.

    Raises:
        UserError: a tensor is missing or has an impossible shape.
    """
    blocks_up = count_of(shapes, r"output_blocks\.(\d+)\.")
    resampling = [
        int(match[1]) for name in shapes if (match := re.fullmatch(_UPSAMPLING_BLOCK, name))
    ]
    blocks_per_level = min(resampling, default=blocks_up - 1) + 1
    if blocks_per_level < 2 or blocks_up % blocks_per_level:
        raise UserError(
            f"{blocks_up} output_blocks do not divide into levels of {blocks_per_level}: not a "
            "GLIDE U-Net"
        )
    channels = size_of(shapes, "time_embed.0.weight", 1, 2)
    starts = [1 + level * blocks_per_level for level in range(blocks_up // blocks_per_level)]
    widths = [size_of(shapes, f"input_blocks.{i}.0.out_layers.3.weight", 0, 4) for i in starts]
    rows = size_of(shapes, "input_blocks.1.0.emb_layers.1.weight", 0, 2)
    return UNetConfig(
        resolution_px=resolution,
        channels=channels,
        channel_mult=tuple(width // channels for width in widths),
        res_blocks=blocks_per_level - 1,
        attention_px=tuple(
            resolution >> level
            for level, i in enumerate(starts)
            if f"input_blocks.{i}.1.qkv.weight" in shapes
        ),
        middle_attention="middle_block.1.qkv.weight" in shapes,
        head_width=head_width,
        embedding="add" if rows == widths[0] else "scale-shift",
    )


def clip_sizes(text: Shapes, image: Shapes, unstored: UnstoredSettings) -> ClipConfig:
    """Sizes of a noised CLIP, from its two files.

    Raises:
        UserError: as `denoiser_sizes`.
    """
    patch = size_of(image, _PATCHES, 2, 4)
    side = math.isqrt(size_of(image, "blocks.input.w_pos", 0, 2) - 1)
    return ClipConfig(
        text=ClipTextConfig(
            vocab_size=size_of(text, _TOKENS, 0, 2),
            length=size_of(text, "blocks.input.w_pos", 0, 2),
            width=size_of(text, _TOKENS, 1, 2),
            layers=count_of(text, r"blocks\.block_(\d+)\."),
            heads=unstored.text_heads,
        ),
        image=ClipImageConfig(
            resolution_px=side * patch,
            patch_px=patch,
            width=size_of(image, _PATCHES, 0, 4),
            layers=count_of(image, r"blocks\.block_(\d+)\."),
            heads=unstored.image_heads,
        ),
        embedding_width=size_of(text, "blocks.output.f.w", 0, 2),
        steps=size_of(image, "blocks.input.w_t", 0, 2),
        dtype=unstored.dtype,
    )


def size_of(shapes: Shapes, name: str, axis: int, dimensions: int) -> int:
    """A size of a tensor. Raises UserError if it is missing or has other dimensions."""
    if name not in shapes:
        raise UserError(f"the weights lack {name}")
    shape = tuple(shapes[name])
    if len(shape) != dimensions or 0 in shape:
        raise UserError(f"{name} has shape {shape}, but {dimensions} dimensions are needed")
    return shape[axis]


def count_of(shapes: Shapes, pattern: str) -> int:
    """Number of distinct values of the pattern's group among the names."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})
