"""Parameter names and sizes of published feature networks: OpenAI CLIP, DINOv2, LPIPS.

`from_original` and `to_original` of names.py apply them, strictly.
"""

import math

from glide_jax.config import ClipConfig, ClipImageConfig, ClipTextConfig
from glide_jax.errors import UserError
from glide_jax.models.dinov2 import DinoConfig
from glide_jax.pretrained.names import Patterns, Rules
from glide_jax.pretrained.sizes import Shapes, count_blocks, size_of

_CLIP_BLOCK = {
    "norm1": "ln_1",
    "out": "attn.out_proj",
    "norm2": "ln_2",
    "mlp_in": "mlp.c_fc",
    "mlp_out": "mlp.c_proj",
}
_DINO_BLOCK = {
    "norm1": "norm1",
    "qkv": "attn.qkv",
    "out": "attn.proj",
    "norm2": "norm2",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}
_LEAF = r"(?P<leaf>\w+)"
_TABLES = {"leaf": {"kernel": "weight", "scale": "weight", "bias": "bias"}}


def _block(ours: str, theirs: str, layers: dict[str, str]) -> Patterns:
    return tuple(
        (rf"{ours}\.(?P<n>\d+)\.{our}\.{_LEAF}", f"{theirs}.{{n}}.{their}.{{leaf}}")
        for our, their in layers.items()
    )


def _clip_blocks(tower: str, theirs: str) -> Patterns:
    qkv = rf"{tower}\.blocks\.(?P<n>\d+)\.qkv\.{_LEAF}"
    return (
        (qkv, f"{theirs}.{{n}}.attn.in_proj_{{leaf}}"),
        *_block(rf"{tower}\.blocks", theirs, _CLIP_BLOCK),
    )


OPENAI_CLIP = Rules((
    (r"text\.token_embedding", "token_embedding.weight"),
    (r"text\.position_embedding", "positional_embedding"),
    (rf"text\.norm_out\.{_LEAF}", "ln_final.{leaf}"),
    (r"text\.projection", "text_projection"),
    (r"image\.class_embedding", "visual.class_embedding"),
    (r"image\.position_embedding", "visual.positional_embedding"),
    (r"image\.patches\.kernel", "visual.conv1.weight"),
    (rf"image\.norm_in\.{_LEAF}", "visual.ln_pre.{leaf}"),
    (rf"image\.norm_out\.{_LEAF}", "visual.ln_post.{leaf}"),
    (r"image\.projection", "visual.proj"),
    *_clip_blocks("text", "transformer.resblocks"),
    *_clip_blocks("image", "visual.transformer.resblocks"),
    (r"logit_scale", "logit_scale"),
), _TABLES)  # fmt: skip
"""Names in OpenAI's state dicts; their archives add integers, which `read_tensors` leaves out."""

DINOV2 = Rules((
    (r"class_embedding", "cls_token"),
    (r"position_embedding", "pos_embed"),
    (r"mask_embedding", "mask_token"),
    (rf"patches\.{_LEAF}", "patch_embed.proj.{leaf}"),
    *_block("blocks", "blocks", _DINO_BLOCK),
    (r"blocks\.(?P<n>\d+)\.scale1", "blocks.{n}.ls1.gamma"),
    (r"blocks\.(?P<n>\d+)\.scale2", "blocks.{n}.ls2.gamma"),
    (rf"norm_out\.{_LEAF}", "norm.{leaf}"),
), _TABLES)  # fmt: skip
"""Names in DINOv2's released backbones."""

LPIPS = Rules(((rf"features\.(?P<n>\d+)\.{_LEAF}", "features.{n}.{leaf}"),), _TABLES)
"""Names of the trunks in torchvision's AlexNet and VGG-16; their classifiers are not used."""


def openai_clip_config(shapes: Shapes, head_width: int = 64) -> ClipConfig:
    """Sizes of a CLIP, from the names and shapes of its tensors.

    Args:
        shapes: by their original names.
        head_width: channels of one attention head, which shapes do not show.

    Raises:
        UserError: it is not OpenAI's CLIP with a vision transformer.
    """
    if "visual.layer1.0.conv1.weight" in shapes:
        raise UserError(
            "a CLIP with a ResNet: only ViT-B/32, B/16, L/14 and the like are supported"
        )
    if "visual.conv1.weight" not in shapes:
        raise UserError("not OpenAI's CLIP: it has no visual.conv1.weight")
    width = size_of(shapes, "visual.conv1.weight", 0, 4)
    patch = size_of(shapes, "visual.conv1.weight", 2, 4)
    text_width = size_of(shapes, "token_embedding.weight", 1, 2)
    side = math.isqrt(size_of(shapes, "visual.positional_embedding", 0, 2) - 1)
    return ClipConfig(
        text=ClipTextConfig(
            vocab_size=size_of(shapes, "token_embedding.weight", 0, 2),
            length=size_of(shapes, "positional_embedding", 0, 2),
            width=text_width,
            layers=count_blocks(shapes, r"transformer\.resblocks\.(\d+)\."),
            heads=text_width // head_width,
        ),
        image=ClipImageConfig(
            resolution_px=side * patch,
            patch_px=patch,
            width=width,
            layers=count_blocks(shapes, r"visual\.transformer\.resblocks\.(\d+)\."),
            heads=width // head_width,
        ),
        embedding_width=size_of(shapes, "text_projection", 1, 2),
        steps=1,
        dtype="float32",
    )


def dinov2_config(shapes: Shapes, head_width: int = 64) -> DinoConfig:
    """Sizes of a DINOv2, from the names and shapes of its tensors.

    Raises:
        UserError: it is not a DINOv2 of patches of 14 px without registers.
    """
    if "register_tokens" in shapes:
        raise UserError("a DINOv2 with registers: the metric is defined for those without")
    if "cls_token" not in shapes:
        raise UserError("not DINOv2: it has no cls_token")
    width = size_of(shapes, "cls_token", 2, 3)
    return DinoConfig(
        width=width,
        layers=count_blocks(shapes, r"blocks\.(\d+)\."),
        heads=width // head_width,
        grid=math.isqrt(size_of(shapes, "pos_embed", 1, 3) - 1),
    )
