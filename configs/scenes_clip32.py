"""Noised CLIP of the shipped demo: scores captions of 32 px scenes at every noise level.

    python train.py --config scenes_clip32
    python -m glide_jax.evaluation.retrieval --checkpoint runs/scenes_clip32

Hardware: a CPU. The shipped model's training time and accuracy are in
glide_jax/demo/clip/MODEL_CARD.md. With a batch of 128 scenes, two images rarely fit one caption,
which would count as an error.
"""

import dataclasses
from pathlib import Path

from glide_jax.cli import load_config
from glide_jax.config import (
    ClipConfig,
    ClipImageConfig,
    ClipTextConfig,
    Config,
    DiffusionConfig,
    OptimConfig,
)


def get_config() -> Config:
    base = load_config(Path(__file__).with_name("scenes_base32.py"))
    return dataclasses.replace(
        base,
        model=ClipConfig(
            text=ClipTextConfig(vocab_size=800, length=32, width=128, layers=3, heads=4),
            image=ClipImageConfig(resolution_px=32, patch_px=4, width=128, layers=4, heads=4),
            embedding_width=128,
            dtype="float32",
        ),
        diffusion=DiffusionConfig(),
        optim=OptimConfig(learning_rate=1e-3, weight_decay=0.01, warmup_steps=200, ema_decay=0.998),
        train=dataclasses.replace(base.train, batch_examples=128, steps=30_000),
    )
