"""Paper's upsampler: 64 to 256 px, 1,641,964,934 parameters (section 3.1, arXiv 2112.10741).

    python train.py --config upsample256_1b5 --data.source folder images/

A wider upsample256. The depth of its text transformer is not published; 24 layers are the base
model's, of which the paper changes only the width. That gives 1.6 billion parameters where the
paper says 1.5; with 16 layers, as in the released models, there are 1,541,195,142
(--model.text.layers 16). Low-resolution images are blurred in training, as for unCLIP's upsampler,
because base models' samples are less sharp than area averages; whether GLIDE did so is not
published.

Hardware: a TPU pod, with parameters sharded by --train.fsdp. Not trained by this project.
"""

import dataclasses
from pathlib import Path

from glide_jax.cli import load_config
from glide_jax.config import Config, LowResConfig, TextConfig


def get_config() -> Config:
    upsample = load_config(Path(__file__).with_name("upsample256.py"))
    model = upsample.denoiser
    return dataclasses.replace(
        upsample,
        model=dataclasses.replace(
            model,
            text=TextConfig(
                length=256,  # not published: as the base model's, after unCLIP (arXiv 2204.06125)
                width=1024,  # paper
                layers=24,  # not published: see above
                heads=16,  # not published: heads of 64 channels, as in the released models
            ),
            unet=dataclasses.replace(model.unet, channels=384),  # paper
        ),
        data=dataclasses.replace(
            upsample.data,
            # Not published: unCLIP's, whose blur is always this strong; here it is the strongest.
            low_res=LowResConfig(blur_px=0.6),
        ),
        train=dataclasses.replace(
            upsample.train,
            steps=1_600_000,  # paper
            batch_examples=512,  # paper
            fsdp=4,
        ),
    )
