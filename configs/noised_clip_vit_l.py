"""Paper's noised CLIP of ViT-L size: 64 px, 440,439,041 parameters.

    python train.py --config noised_clip_vit_l --data.source folder images/

390K iterations at batch 32K with weight decay 0.0125 (appendix, arXiv 2112.10741). Unpublished
values are those of CLIP's ViT-L/14 (arXiv 2103.00020), except the images: 64 px in patches of 4, as
in the released model.

Hardware: a TPU pod. Not trained by this project.
"""

import dataclasses
from pathlib import Path

from glide_jax.cli import load_config
from glide_jax.config import ClipConfig, ClipImageConfig, ClipTextConfig, Config


def get_config() -> Config:
    smaller = load_config(Path(__file__).with_name("noised_clip.py"))
    return dataclasses.replace(
        smaller,
        model=ClipConfig(
            text=ClipTextConfig(width=768, heads=12),  # not published: CLIP's ViT-L/14's
            image=ClipImageConfig(width=1024, layers=24, heads=16),  # paper: ViT-L
            embedding_width=768,  # not published: CLIP's ViT-L/14's
        ),
        optim=dataclasses.replace(
            smaller.optim,
            learning_rate=4e-4,  # not published: CLIP's ViT-L/14's
        ),
    )
