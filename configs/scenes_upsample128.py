"""Upsampler of the shipped demo: 32 px scenes to 128 px.

    python train.py --config scenes_upsample128
    python -m glide_jax.evaluation.upsampling --checkpoint runs/scenes_upsample128 --n 64

Hardware: a CPU. The shipped model's training time and accuracy are in
glide_jax/demo/upsample/MODEL_CARD.md.

Training uses 64 px crops: a quarter of the time, and the network treats all positions alike.
Low-resolution images are blurred and noised a little, because a base model's samples are imperfect;
the model is conditioned on the noise level. It predicts a correction to the upsampled image
(--diffusion.low-res-std 0 predicts the full image, as GLIDE, and trains far more slowly): scenes
differ from their upsampled low-resolution images by 0.07, root mean square. The low-resolution
image determines most of the result, so five sampling steps suffice; after short training, more
steps only add grain.
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
