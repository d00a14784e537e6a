r"""Paper's base model: 64 px, 3,554,938,374 parameters (section 3.1, arXiv 2112.10741).

    python train.py --config base64_3b5 --data.source folder images/

The U-Net has about 2.3 billion parameters, the text transformer 1.2 billion. Unpublished values are
those of unCLIP's decoder, a model of the same size (table 3, arXiv 2204.06125), whose dropout 0.1,
Adam betas 0.9 and 0.999, epsilon 1e-8 and EMA decay 0.9999 are also those of base64.
Then fine-tune for classifier-free guidance (the length is not published for this size):

    python train.py --config base64_3b5 --data.source folder images/ \
        --train.init-from runs/base64_3b5 --train.run-dir runs/base64_3b5_cfg \
        --data.caption-dropout 0.2 --sample.guidance-scale 3 --train.steps 500000

Hardware: a TPU pod or eight H100, with parameters sharded by --train.fsdp. Not trained by this
project. Planned, not measured (docs/scaling.md): with --train.micro-batches 8 it takes 33 GiB of
each of eight H100 and 4.3 s a step, 124 days in all.
"""

import dataclasses
from pathlib import Path

from glide_jax.cli import load_config
from glide_jax.config import Config, TextConfig


def get_config() -> Config:
    base = load_config(Path(__file__).with_name("base64.py"))
    model = base.denoiser
    return dataclasses.replace(
        base,
        model=dataclasses.replace(
            model,
            text=TextConfig(
                length=256,  # not published: unCLIP's decoder's; the released models have 128
                width=2048,  # paper
                layers=24,  # paper
                heads=32,  # not published: unCLIP's decoder's
            ),
            unet=dataclasses.replace(model.unet, channels=512),  # paper
            remat="matmuls",  # the fastest that fits 32 images a chip: docs/scaling.md
        ),
        optim=dataclasses.replace(
            base.optim,
            learning_rate=1.2e-4,  # not published: unCLIP's decoder's
        ),
        sample=dataclasses.replace(base.sample, steps="150"),  # paper
        train=dataclasses.replace(
            base.train,
            steps=2_500_000,  # paper
            batch_examples=2048,  # paper
            fsdp=8,
        ),
    )
