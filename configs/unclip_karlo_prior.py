r"""Diffusion prior of Karlo: 1,022,030,080 parameters, 1,536 of them statistics.

    python train.py --config unclip_karlo_prior --data.source folder images/ \
        --train.clip-run karlo/clip

For OpenAI's ViT-L/14 CLIP. Sizes, drop rate, steps and sampling are those of the published configs
(kakaobrain/karlo); the training code and the optimizer are not published, here they are
unclip_prior's. To fine-tune the released weights, convert them (docs/unclip.md) and add
--train.init-from karlo/prior.

Hardware: a TPU pod or several GPUs. Not trained by this project.
"""

import dataclasses
from pathlib import Path

from glide_jax.cli import load_config
from glide_jax.config import Config, PriorConfig, SampleConfig


def get_config() -> Config:
    base = load_config(Path(__file__).with_name("unclip_prior.py"))
    return dataclasses.replace(
        base,
        model=PriorConfig(remat="blocks"),  # Karlo's sizes are the defaults
        data=dataclasses.replace(base.data, caption_dropout=0.2),
        sample=SampleConfig(sampler="ddpm", steps="25", guidance_scale=4.0),
        train=dataclasses.replace(base.train, clip_run="karlo/clip", steps=1_000_000),
    )
