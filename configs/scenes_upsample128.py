"""The shipped demo's upsampler: 32 px scenes to 128 px.

    python train.py --config configs/scenes_upsample128.py

Trained on squares of 64 px cut from the images: a quarter of the time, for a network that looks
at places alike. The smaller images are blurred and noised a little, since a base model's are
never quite right; the model is told of the noise. It corrects them instead of drawing from nothing
(--diffusion.low-res-std 0 does as GLIDE, and learns far more slowly): scenes differ from
their smaller images enlarged by 0.07, root mean square. Most of the larger image follows from
the smaller one: five steps are enough, and after a short training more of them only add grain.
"""

import dataclasses
from pathlib import Path

from glide_jax.cli import load_config
from glide_jax.config import (
    Config,
    DataConfig,
    DiffusionConfig,
    LowResConfig,
    ModelConfig,
    SampleConfig,
    TextConfig,
    UNetConfig,
)


def get_config() -> Config:
    base = load_config(Path(__file__).with_name("scenes_base32.py"))
    return dataclasses.replace(
        base,
        model=ModelConfig(
            text=TextConfig(vocab_size=512, length=24, width=64, layers=2, heads=2),
            unet=UNetConfig(
                resolution_px=128,
                channels=32,
                channel_mult=(1, 1, 2, 4),
                res_blocks=1,
                attention_px=(),
                head_width=32,
            ),
            low_res_px=32,
            low_res_noise=True,
            dtype="float32",
        ),
        diffusion=DiffusionConfig(schedule="linear", prediction="v", low_res_std=0.07),
        data=DataConfig(
            caption_dropout=0.1, low_res=LowResConfig(crop_px=64, blur_px=0.6, noise_steps=40)
        ),
        sample=SampleConfig(sampler="ddim", steps="5", guidance_scale=1.0),
        train=dataclasses.replace(base.train, batch_examples=16),
    )
