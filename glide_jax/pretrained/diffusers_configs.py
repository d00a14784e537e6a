"""config.json of diffusers' unCLIP components and of transformers' CLIP, to and from our settings.

Missing settings have the defaults of their classes (diffusers 0.42).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

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
from glide_jax.pretrained.sizes import UnstoredSettings
from glide_jax.pretrained.unclip_sizes import VOCAB_SIZE

Json = Mapping[str, Any]
"""A config.json."""

_ATTENDS = {
    "SimpleCrossAttnDownBlock2D": True,
    "ResnetDownsampleBlock2D": False,
}
"""Whether a block of the encoder has attention."""


def prior_sizes(config: Json, unstored: UnstoredSettings) -> PriorConfig:
    """Sizes of prior/. Raises UserError if they are no unCLIP prior's."""
    heads, head_width = _number(config, "num_attention_heads", 32), prior_head_width(config)
    if _number(config, "additional_embeddings", EXTRA_TOKENS) != EXTRA_TOKENS:
        raise UserError("config.json: additional_embeddings is not that of unCLIP's prior, 4")
    embedding_width = _number(config, "embedding_dim", 768)
    return PriorConfig(
        text=ClipStatesConfig(VOCAB_SIZE, _number(config, "num_embeddings", 77), embedding_width),
        embedding_width=embedding_width,
        width=heads * head_width,
        layers=_number(config, "num_layers", 20),
        heads=heads,
        dtype=unstored.dtype,
    )


def decoder_sizes(unet: Json, text_proj: Json, unstored: UnstoredSettings) -> ModelConfig:
    """Sizes of decoder/ and text_proj/. Raises UserError if they are no unCLIP decoder's."""
    embedding_width = _number(text_proj, "clip_embeddings_dim", 768)
    return ModelConfig(
        text=TextConfig(
            encoder="clip",
            vocab_size=VOCAB_SIZE,
            length=unstored.text_length,
            width=_number(unet, "cross_attention_dim", 1280),
            clip_width=embedding_width,
        ),
        unet=_unet_sizes(unet),
        image_embedding_width=embedding_width,
        image_tokens=_number(text_proj, "clip_extra_context_tokens", 4),
        learned_variance=_number(unet, "out_channels", 4) == 6,
        dtype=unstored.dtype,
    )


def sr_sizes(first: Json, unstored: UnstoredSettings) -> ModelConfig:
    """Sizes of super_res_first/ and super_res_last/. Raises UserError if they are others."""
    return ModelConfig(
        text=TextConfig(encoder="none"),
        unet=_unet_sizes(first),
        low_res_px=unstored.base_px,
        low_res_resize="bicubic",
        learned_variance=_number(first, "out_channels", 3) == 6,
        last_step_network=True,
        dtype=unstored.dtype,
    )


def prior_head_width(config: Json) -> int:
    """Channels of an attention head of prior/."""
    return _number(config, "attention_head_dim", 64)


def prior_config(model: PriorConfig) -> dict[str, Any]:
    """config.json of prior/. Raises UserError if diffusers cannot have the model."""
    if model.architecture != "diffusion":
        raise UserError(f"diffusers has no {model.architecture} prior")
    if model.text.width != model.embedding_width:
        raise UserError(
            f"diffusers' priors need text states as wide as embeddings: model.text.width is "
            f"{model.text.width}, model.embedding_width {model.embedding_width}"
        )
    return {
        "_class_name": "PriorTransformer",
        "num_attention_heads": model.heads,
        "attention_head_dim": model.width // model.heads,
        "num_layers": model.layers,
        "embedding_dim": model.embedding_width,
        "num_embeddings": model.text.length,
        "additional_embeddings": EXTRA_TOKENS,
        "dropout": 0.0,
    }


def decoder_configs(model: ModelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json of decoder/ and of text_proj/. Raises as `prior_config`."""
    if not (model.text.encoder == "clip" and model.image_tokens and model.unet.middle_attention):
        raise UserError(
            "diffusers' decoders need model.text.encoder clip, image_tokens and middle_attention: "
            "convert to a file instead"
        )
    if model.text.clip_width != model.image_embedding_width:
        raise UserError(
            "diffusers' decoders need text states as wide as embeddings: model.text.clip_width is "
            f"{model.text.clip_width}, model.image_embedding_width {model.image_embedding_width}"
        )
    unet = {
        **_unet_config(model, "UNet2DConditionModel"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "cross_attention_dim": model.text.width,
        "class_embed_type": "identity",
    }
    return unet, {
        "_class_name": "UnCLIPTextProjModel",
        "clip_extra_context_tokens": model.image_tokens,
        "clip_embeddings_dim": model.image_embedding_width,
        "time_embed_dim": 4 * model.unet.channels,
        "cross_attention_dim": model.text.width,
    }


def sr_config(model: ModelConfig) -> dict[str, Any]:
    """config.json of super_res_first/ and super_res_last/. Raises as `prior_config`."""
    if not model.last_step_network or model.text.encoder != "none":
        raise UserError(
            "diffusers' upsamplers need model.last_step_network and text.encoder none, as Karlo's: "
            "convert to a file instead"
        )
    return {**_unet_config(model, "UNet2DModel"), "add_attention": False}


def clip_configs(model: ClipConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json of text_encoder/ and of image_encoder/."""
    towers: tuple[ClipTextConfig | ClipImageConfig, ...] = (model.text, model.image)
    text, image = (
        {
            "hidden_size": tower.width,
            "intermediate_size": 4 * tower.width,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "hidden_act": "quick_gelu",
            "projection_dim": model.embedding_width,
        }
        for tower in towers
    )
    return {
        "architectures": ["CLIPTextModelWithProjection"],
        "model_type": "clip_text_model",
        "vocab_size": model.text.vocab_size,
        "max_position_embeddings": model.text.length,
        "bos_token_id": model.text.vocab_size - 2,
        "eos_token_id": model.text.vocab_size - 1,
        **text,
    }, {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "image_size": model.image.resolution_px,
        "patch_size": model.image.patch_px,
        **image,
    }


def with_heads(model: ClipConfig, text: Json, image: Json) -> ClipConfig:
    """A CLIP with the attention heads of text_encoder/ and image_encoder/.

    Raises:
        UserError: its activation is not OpenAI's.
    """
    for config in (text, image):
        activation = config.get("hidden_act", "quick_gelu")
        if activation != "quick_gelu":
            raise UserError(f"config.json: hidden_act is {activation}, not quick_gelu as OpenAI's")
    text_heads = _number(text, "num_attention_heads", model.text.heads)
    image_heads = _number(image, "num_attention_heads", model.image.heads)
    return dataclasses.replace(
        model,
        text=dataclasses.replace(model.text, heads=text_heads),
        image=dataclasses.replace(model.image, heads=image_heads),
    )


def _unet_sizes(config: Json) -> UNetConfig:
    widths = config.get("block_out_channels")
    if not isinstance(widths, list) or not widths or not all(type(x) is int for x in widths):
        raise UserError("config.json: block_out_channels is not a list of widths")
    px, channels = _number(config, "sample_size", 64), widths[0]
    blocks = config.get("down_block_types")
    if (
        not isinstance(blocks, list)
        or len(blocks) != len(widths)
        or not set(blocks) <= set(_ATTENDS)
    ):
        raise UserError(
            f"config.json: down_block_types is not one of {', '.join(_ATTENDS)} for each of "
            f"{len(widths)} block_out_channels"
        )
    attends = [_ATTENDS[block] for block in blocks]
    scales = config.get("resnet_time_scale_shift") == "scale_shift"
    return UNetConfig(
        resolution_px=px,
        channels=channels,
        channel_mult=tuple(width // channels for width in widths),
        res_blocks=_number(config, "layers_per_block", 2),
        attention_px=tuple(px >> level for level, attending in enumerate(attends) if attending),
        middle_attention=config.get("_class_name") == "UNet2DConditionModel",
        head_width=_number(config, "attention_head_dim", 64) if any(attends) else 64,
        embedding="scale-shift" if scales else "add",
    )


def _unet_config(model: ModelConfig, name: str) -> dict[str, Any]:
    unet = model.unet
    attends = [px in unet.attention_px for px in unet.levels_px]
    kinds = {attending: block for block, attending in _ATTENDS.items()}
    down = [kinds[attending] for attending in attends]
    up = [block.replace("Downsample", "Upsample").replace("Down", "Up") for block in reversed(down)]
    return {
        "_class_name": name,
        "sample_size": unet.resolution_px,
        "in_channels": 3 + model.condition_channels,
        "out_channels": 6 if model.learned_variance else 3,
        "block_out_channels": [unet.channels * mult for mult in unet.channel_mult],
        "layers_per_block": unet.res_blocks,
        "down_block_types": down,
        "up_block_types": up,
        "attention_head_dim": unet.head_width,
        "resnet_time_scale_shift": "scale_shift" if unet.embedding == "scale-shift" else "default",
    }


def _number(config: Json, name: str, default: int) -> int:
    value = config.get(name, default)
    if type(value) is not int or value < 1:
        raise UserError(f"config.json: {name} is {value!r}, not a whole number above 0")
    return value
