"""CLIP of unCLIP's paper: ViT-H/16 at 256 px, 986,274,305 parameters (arXiv 2204.06125).

    python train.py --config unclip_clip --data.source folder images/

The first stage of unCLIP: prior and decoder learn from its embeddings, by --train.clip-run. The
paper trains it with SAM (rho 0.1), which is not implemented here; most runs start from OpenAI's
released ViT-L/14 instead (docs/unclip.md).

Hardware: a TPU pod. Not trained by this project.
"""

import dataclasses
from pathlib import Path

from glide_jax.cli import load_config
from glide_jax.config import ClipConfig, ClipImageConfig, ClipTextConfig, Config


def get_config() -> Config:
    base = load_config(Path(__file__).with_name("noised_clip_vit_l.py"))
    return dataclasses.replace(
        base,
        model=ClipConfig(
            text=ClipTextConfig(
                vocab_size=49_408,  # not published: CLIP's (arXiv 2103.00020)
                length=77,  # not published: CLIP's
                width=1024,  # paper
                layers=24,  # paper
                heads=16,  # not published: heads of 64 channels, as in CLIP
            ),
            image=ClipImageConfig(
                resolution_px=256,  # paper
                patch_px=16,  # paper
                width=1280,  # paper
                layers=32,  # paper
                heads=16,  # not published: ViT-H's (arXiv 2010.11929)
            ),
            embedding_width=1024,  # paper
            steps=1,  # a CLIP of images without noise
            remat="blocks",
        ),
    )
