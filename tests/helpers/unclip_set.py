"""A set of small unCLIP models with random weights."""

import dataclasses
from pathlib import Path

from helpers import tiny
from helpers.model_set import write_random_run

from glide_jax.config import (
    ClipConfig,
    ClipImageConfig,
    ClipStatesConfig,
    ClipTextConfig,
    Config,
    DiffusionConfig,
    PriorConfig,
    SampleConfig,
    TextConfig,
)
from glide_jax.data.tokenizers.clip_bpe import ClipTokenizer

WIDTH, LENGTH, VOCAB = 16, 8, 600
CAPTIONS = ["all red", "all green"]
ROLES = ("clip", "prior", "decoder", "upsample")


def unclip_config(role: str) -> Config:
    """The configuration of one model: a decoder of CLIP states, an upsampler without captions."""
    base = tiny.get_config()
    if role == "clip":
        text = ClipTextConfig(VOCAB, LENGTH, 32, 1, 2)
        image = ClipImageConfig(resolution_px=8, patch_px=4, width=32, layers=1, heads=2)
        model = ClipConfig("openai", text, image, WIDTH, steps=1, dtype="float32")
        return Config(model=model)
    if role == "prior":
        text = ClipStatesConfig(VOCAB, LENGTH, 32)
        sizes = {"embedding_width": WIDTH, "width": 32, "layers": 1, "heads": 2}
        model = PriorConfig(text=text, **sizes, dtype="float32")
        return Config(model=model, sample=SampleConfig(steps="3"))
    if role == "decoder":
        text = TextConfig("clip", VOCAB, LENGTH, 32, clip_width=32)
        model = dataclasses.replace(base.model, text=text, image_embedding_width=WIDTH)
        return dataclasses.replace(base, model=model, sample=SampleConfig(steps="3"))
    unet = dataclasses.replace(
        base.model.unet, resolution_px=16, attention_px=(), middle_attention=False, embedding="add"
    )
    model = dataclasses.replace(
        base.model,
        text=TextConfig("none"),
        unet=unet,
        low_res_px=8,
        low_res_resize="bicubic",
        learned_variance=False,
        last_step_network=True,
    )
    return Config(model=model, diffusion=DiffusionConfig(), sample=SampleConfig(steps="2"))


def write_unclip(folder: Path) -> Path:
    """Run folders of all models."""
    tokenizer = ClipTokenizer.train(CAPTIONS, VOCAB)
    for role in ROLES:
        write_random_run(folder / role, unclip_config(role), tokenizer)
    return folder
