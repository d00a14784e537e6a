"""Sizes of the golden files' networks, from their constructor arguments."""

from glide_jax.config import ClipConfig, ClipImageConfig, ClipTextConfig
from glide_jax.models.dinov2 import DinoConfig


def small_clip_config(meta, vocab_size=None):
    """The CLIP of clip_tiny.npz, or one with another vocabulary."""
    vocab_size = vocab_size or meta["vocab"]
    layers, heads = meta["text_layers"], meta["text_heads"]
    return ClipConfig(
        text=ClipTextConfig(vocab_size, meta["context"], meta["text_width"], layers, heads),
        image=ClipImageConfig(
            resolution_px=meta["image"],
            patch_px=meta["patch"],
            width=meta["width"],
            layers=meta["layers"],
            heads=meta["width"] // meta["head_width"],
        ),
        embedding_width=meta["embed"],
        steps=1,
        dtype="float32",
    )


def small_dinov2_config(meta):
    """The DINOv2 of dinov2_tiny.npz."""
    grid = meta["img_size"] // meta["patch"]
    return DinoConfig(meta["dim"], meta["depth"], meta["heads"], grid)
