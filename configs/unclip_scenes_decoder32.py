"""Decoder of the shipped unCLIP demo: 32 px scenes, 4,259,142 parameters.

    python train.py --config unclip_scenes_decoder32
    python train.py --config unclip_scenes_decoder32 --train.init-from "" --train.steps 60000

Starts from the demo's base model, with embeddings of the demo's CLIP; the second command trains
from scratch. The caption is dropped more often than by the base model, so that the embedding alone
gives an image too.

Hardware: a CPU. The shipped model, of 1,000 steps, is described in
glide_jax/demo/decoder/MODEL_CARD.md.
"""

import dataclasses
from pathlib import Path

from glide_jax.cli import load_config
from glide_jax.config import Config


def get_config() -> Config:
    base = load_config(Path(__file__).with_name("scenes_base32.py"))
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.denoiser, image_embedding_width=128),
        data=dataclasses.replace(base.data, caption_dropout=0.5, embedding_dropout=0.1),
        optim=dataclasses.replace(base.optim, learning_rate=5e-4),
        train=dataclasses.replace(
            base.train, init_from="demo/base", clip_run="demo/clip", steps=3000
        ),
    )
