"""Second upsampler of unCLIP's paper: 256 to 1024 px, 282,064,326 parameters.

    python train.py --config unclip_upsample1024 --data.source folder images/

Trained on crops of 256 px with a linear schedule. Its low-resolution images have random blurs,
noise and JPEG artifacts (app. C, arXiv 2204.06125), which the model learns to remove. Values of
table 3 are marked paper.

Hardware: a TPU pod or several GPUs. Not trained by this project.
"""

import dataclasses
from pathlib import Path

from glide_jax.cli import load_config
from glide_jax.config import Config, DiffusionConfig, LowResConfig, OptimConfig, SampleConfig


def get_config() -> Config:
    first = load_config(Path(__file__).with_name("unclip_upsample256.py"))
    model = first.denoiser
    return dataclasses.replace(
        first,
        model=dataclasses.replace(
            model,
            unet=dataclasses.replace(
                model.unet,
                resolution_px=1024,  # paper
                channels=192,  # paper
                channel_mult=(1, 1, 2, 2, 4, 4),  # paper
                res_blocks=2,  # paper
                dropout=0.0,  # paper
            ),
            low_res_px=256,  # paper
        ),
        diffusion=DiffusionConfig(schedule="linear"),  # paper
        data=dataclasses.replace(
            first.data,
            low_res=LowResConfig(
                crop_px=256,  # paper: crops of a quarter of the side
                degradation="bsr",  # paper
            ),
        ),
        optim=OptimConfig(learning_rate=1e-4),  # paper
        sample=SampleConfig(sampler="ddim", steps="15", guidance_scale=1.0),  # paper
        train=dataclasses.replace(first.train, batch_examples=512),  # paper
    )
