"""Inpainting model of the shipped demo, fine-tuned from scenes_base32 (sec. 3.3 of the paper).

    python train.py --config scenes_base32_inpaint
    python -m glide_jax.evaluation.scenes.inpainting --checkpoint runs/scenes_base32_inpaint --n 200

Hardware: a CPU. It starts from runs/scenes_base32 (or --train.init-from). The shipped model's
training time and accuracy are in glide_jax/demo/base-inpaint/MODEL_CARD.md.
"""

import dataclasses
from pathlib import Path

from glide_jax.cli import load_config
from glide_jax.config import Config


def get_config() -> Config:
    config = load_config(Path(__file__).with_name("scenes_base32.py"))
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.denoiser, inpaint=True),
        optim=dataclasses.replace(config.optim, learning_rate=5e-4),
        train=dataclasses.replace(config.train, init_from="runs/scenes_base32", steps=10_000),
    )
