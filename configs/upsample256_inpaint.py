"""Released inpainting upsampler: 64 to 256 px, 398,368,198 parameters.

    python train.py --config upsample256 --data.source folder images/
    python train.py --config upsample256_inpaint --data.source folder images/

The second command starts from runs/upsample256 (or --train.init-from). It adds four input channels,
the known pixels of the high-resolution image and their mask, with weights initialized to zero; the
low-resolution image is complete (section 3.3, arXiv 2112.10741). The paper erases "random regions";
the masks here are the defaults of data.masks.

Hardware: as upsample256. Not trained by this project.
"""

import dataclasses
from pathlib import Path

from glide_jax.cli import load_config
from glide_jax.config import Config
from glide_jax.pretrained.defaults import RELEASED


def get_config() -> Config:
    upsample = load_config(Path(__file__).with_name("upsample256.py"))
    return dataclasses.replace(
        upsample,
        model=dataclasses.replace(upsample.denoiser, inpaint=True),
        sample=RELEASED["upsample-inpaint"].sample,
        train=dataclasses.replace(
            upsample.train,
            init_from="runs/upsample256",
            steps=500_000,  # not published: the inpainting base model's
        ),
    )
