"""Sizes of unCLIP's published models, from the names and shapes of Karlo's and CLIP's tensors."""

import math

from glide_jax.config import (
    ClipConfig,
    ClipImageConfig,
    ClipStatesConfig,
    ClipTextConfig,
    ModelConfig,
    PriorConfig,
    TextConfig,
    UNetConfig,
)
from glide_jax.config.prior import EXTRA_TOKENS
from glide_jax.errors import UserError
from glide_jax.pretrained.names import tower
from glide_jax.pretrained.sizes import (
    Shapes,
    UnstoredSettings,
    count_of,
    size_of,
    unet_sizes,
)
from glide_jax.pretrained.unclip_names import SR_PARTS

VOCAB_SIZE = 49_408
"""Of OpenAI's CLIP, which conditions Karlo's models."""

OPENAI_NAMES = {
    "tokens": "token_embedding.weight",
    "positions": "positional_embedding",
    "layers": r"transformer\.resblocks\.(\d+)\.",
    "patches": "visual.conv1.weight",
    "image_positions": "visual.positional_embedding",
    "image_layers": r"visual\.transformer\.resblocks\.(\d+)\.",
}
"""Where OpenAI's state dicts show the sizes of a CLIP."""
TRANSFORMERS_NAMES = {
    "tokens": "text_model.embeddings.token_embedding.weight",
    "positions": "text_model.embeddings.position_embedding.weight",
    "layers": r"text_model\.encoder\.layers\.(\d+)\.",
    "patches": "vision_model.embeddings.patch_embedding.weight",
    "image_positions": "vision_model.embeddings.position_embedding.weight",
    "image_layers": r"vision_model\.encoder\.layers\.(\d+)\.",
}
"""Where transformers' models show them."""


def karlo_prior_sizes(shapes: Shapes, unstored: UnstoredSettings) -> PriorConfig:
    """Sizes of Karlo's prior.

    Raises:
        UserError: a tensor is missing or has an impossible shape, or `unstored` does not fit.
    """
    width = size_of(shapes, "model.prd_emb", 2, 3)
    length = size_of(shapes, "model.positional_embedding", 1, 3) - EXTRA_TOKENS
    if length < 1:
        raise UserError(f"model.positional_embedding is for {length + EXTRA_TOKENS} positions only")
    return PriorConfig(
        text=ClipStatesConfig(
            VOCAB_SIZE, length, size_of(shapes, "model.text_enc_proj.weight", 1, 2)
        ),
        embedding_width=size_of(shapes, "model.clip_img_proj.weight", 1, 2),
        width=width,
        layers=count_of(shapes, r"model\.transformer\.resblocks\.(\d+)\."),
        heads=heads_of(width, unstored.head_width),
        dtype=unstored.dtype,
    )


def karlo_decoder_sizes(shapes: Shapes, unstored: UnstoredSettings) -> ModelConfig:
    """Sizes of Karlo's decoder. Raises as `karlo_prior_sizes`."""
    width = size_of(shapes, "model.text_seq_proj.0.weight", 0, 2)
    return ModelConfig(
        text=TextConfig(
            encoder="clip",
            vocab_size=VOCAB_SIZE,
            length=unstored.text_length,
            width=width,
            clip_width=size_of(shapes, "model.text_seq_proj.0.weight", 1, 2),
        ),
        unet=unet_sizes(tower(shapes, "model"), unstored.base_px, unstored.head_width),
        image_embedding_width=size_of(shapes, "model.cf_param", 0, 1),
        image_tokens=size_of(shapes, "model.clip_tok_proj.weight", 0, 2) // width,
        dtype=unstored.dtype,
    )


def karlo_sr_sizes(shapes: Shapes, unstored: UnstoredSettings) -> ModelConfig:
    """Sizes of Karlo's upsampler of two networks. Raises as `karlo_prior_sizes`."""
    first = tower(shapes, SR_PARTS["first"])
    return ModelConfig(
        text=TextConfig(encoder="none"),
        unet=unet_sizes(first, unstored.upsample_px, UNetConfig.head_width),  # no attention
        low_res_px=unstored.base_px,
        low_res_resize="bicubic",
        learned_variance=size_of(first, "out.2.weight", 0, 4) == 6,
        last_step_network=True,
        dtype=unstored.dtype,
    )


def plain_clip_sizes(
    shapes: Shapes, names: dict[str, str], embedding_width: int, unstored: UnstoredSettings
) -> ClipConfig:
    """Sizes of OpenAI's CLIP.

    Args:
        shapes: of all tensors.
        names: OPENAI_NAMES or TRANSFORMERS_NAMES.
        embedding_width: channels of its embeddings.
        unstored: settings that do not follow from them.

    Raises:
        UserError: as `karlo_prior_sizes`.
    """
    text_width = size_of(shapes, names["tokens"], 1, 2)
    image_width, patch = (size_of(shapes, names["patches"], axis, 4) for axis in (0, 2))
    side = math.isqrt(size_of(shapes, names["image_positions"], 0, 2) - 1)
    return ClipConfig(
        architecture="openai",
        text=ClipTextConfig(
            vocab_size=size_of(shapes, names["tokens"], 0, 2),
            length=size_of(shapes, names["positions"], 0, 2),
            width=text_width,
            layers=count_of(shapes, names["layers"]),
            heads=heads_of(text_width, unstored.head_width),
        ),
        image=ClipImageConfig(
            resolution_px=side * patch,
            patch_px=patch,
            width=image_width,
            layers=count_of(shapes, names["image_layers"]),
            heads=heads_of(image_width, unstored.head_width),
        ),
        embedding_width=embedding_width,
        steps=1,
        dtype=unstored.dtype,
    )


def heads_of(width: int, head_width: int) -> int:
    """How many heads of a width a layer has. Raises UserError if they do not divide it."""
    if width % head_width:
        raise UserError(
            f"heads of {head_width} channels do not divide a width of {width}: give --head-width"
        )
    return width // head_width
