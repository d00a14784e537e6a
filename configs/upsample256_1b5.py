"""The paper's upsampler: 1,641,964,934 parameters, 64 to 256 px (section 3.1, arXiv 2112.10741).

    python train.py --config configs/upsample256_1b5.py --data.source folder --data.path images/

The smaller one (configs/upsample256.py), only wider. How deep its text transformer is is not
published: of the base model's the paper changes the width alone, so here it has 24 layers. That
makes 1.6 billion parameters where the paper says 1.5; with 16 layers, as in the released models, it
would be 1,541,195,142 (--model.text.layers 16).
The small images are blurred in training, as for unCLIP's upsampler, because base models do not
draw as sharply as an average over areas; whether GLIDE's were is not published.
Hardware: a TPU pod, with parameters sharded by --train.fsdp; not trained by this project.
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
