"""Upsampler of Karlo: 64 to 256 px in seven steps, 691,579,523 parameters.

    python train.py --config unclip_karlo_upsample256 --data.source folder images/

An upsampler without captions (kakaobrain/karlo): the network of the first six steps, which also
takes the seventh here. Karlo's network for that step is fine-tuned with adversarial losses that are
not published. Sizes are those of Karlo's published configs; its training code and optimizer are not
published.

Hardware: a TPU pod or several GPUs. Not trained by this project.
"""

import dataclasses
from pathlib import Path

from glide_jax.cli import load_config
from glide_jax.config import Config, SampleConfig


def get_config() -> Config:
    paper = load_config(Path(__file__).with_name("unclip_upsample256.py"))
    model = paper.denoiser
    return dataclasses.replace(
        paper,
        model=dataclasses.replace(
            model,
            unet=dataclasses.replace(model.unet, embedding="add", dropout=0.0),
            low_res_resize="bicubic",
            learned_variance=False,
        ),
        sample=SampleConfig(sampler="ddpm", steps="7", guidance_scale=1.0),
    )
