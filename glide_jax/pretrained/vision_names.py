"""Parameter names of published feature networks: OpenAI CLIP, DINOv2, LPIPS.

`from_original` and `to_original` of names.py apply them, strictly.
"""

from glide_jax.pretrained.names import Patterns, Rules

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
