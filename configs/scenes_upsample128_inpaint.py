"""Inpainting upsampler of the shipped demo, fine-tuned from scenes_upsample128.

    python train.py --config scenes_upsample128_inpaint

Hardware: a CPU. It starts from runs/scenes_upsample128 (or --train.init-from). The shipped model's
training time is in glide_jax/demo/upsample-inpaint/MODEL_CARD.md. Source: sec. 3.3 of the paper.
"""

import dataclasses
from pathlib import Path

from glide_jax.cli import load_config
from glide_jax.config import Config


def get_config() -> Config:
    config = load_config(Path(__file__).with_name("scenes_upsample128.py"))
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.denoiser, inpaint=True),
        optim=dataclasses.replace(config.optim, learning_rate=5e-4),
        train=dataclasses.replace(config.train, init_from="runs/scenes_upsample128", steps=10_000),
    )
