r"""Autoregressive prior of unCLIP's paper: 805,879,806 parameters (arXiv 2204.06125).

    python train.py --config unclip_prior_ar --data.source folder images/ \
        --train.clip-run runs/unclip_clip

Values of table 3 are marked paper. The paper has a text encoder of its own (256 tokens, 2048
channels, 24 layers, 32 heads), how its states and 319 codes share a context of 384 is not stated;
here the model reads the states of its CLIP, as the diffusion prior does. The dropout of the paper
is not stated either: none.

Hardware: a TPU pod or several GPUs. Not trained by this project.
"""

import dataclasses
from pathlib import Path

from glide_jax.cli import load_config
from glide_jax.config import Config, SampleConfig


def get_config() -> Config:
    base = load_config(Path(__file__).with_name("unclip_prior.py"))
    return dataclasses.replace(
        base,
        model=dataclasses.replace(
            base.prior,
            architecture="autoregressive",
            components=319,  # paper
            buckets=1024,  # paper
            width=1664,  # paper
            layers=24,  # paper
            heads=26,  # paper
        ),
        optim=dataclasses.replace(
            base.optim,
            learning_rate=1.6e-4,  # paper
            b2=0.91,  # paper
            eps=1e-10,  # paper
            weight_decay=4e-2,  # paper
            ema_decay=0.999,  # paper
        ),
        sample=SampleConfig(guidance_scale=1.0),  # not published
        train=dataclasses.replace(
            base.train,
            steps=1_000_000,  # paper
            batch_examples=4096,  # paper
        ),
    )
