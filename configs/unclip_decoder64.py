r"""Decoder of unCLIP's paper: 64 px, 3,565,435,398 parameters (arXiv 2204.06125).

    python train.py --config unclip_decoder64 --data.source folder images/ \
        --train.clip-run runs/unclip_clip

GLIDE's base64_3b5, conditioned on CLIP image embeddings: added to the embedding of time, and as
four tokens before those of the caption (sec. 2.1). Values of table 3 are marked paper.
--train.init-from runs/base64_3b5 starts from a trained GLIDE base model instead.

Hardware: a TPU pod or eight H100, with parameters sharded by --train.fsdp. Not trained by this
project.
"""

import dataclasses
from pathlib import Path

from glide_jax.cli import load_config
from glide_jax.config import Config, SampleConfig


def get_config() -> Config:
    base = load_config(Path(__file__).with_name("base64_3b5.py"))  # its sizes are table 3's
    return dataclasses.replace(
        base,
        model=dataclasses.replace(
            base.denoiser,
            image_embedding_width=1024,  # paper: CLIP's ViT-H/16
            image_tokens=4,  # paper
        ),
        data=dataclasses.replace(
            base.data,
            caption_dropout=0.5,  # paper
            embedding_dropout=0.1,  # paper
        ),
        # The optimizer is base64_3b5's, which is this model's in table 3.
        sample=SampleConfig(sampler="ddpm", steps="250", guidance_scale=1.25),  # paper, for FID
        train=dataclasses.replace(
            base.train,
            clip_run="runs/unclip_clip",
            steps=800_000,  # paper
            batch_examples=2048,  # paper
        ),
    )
