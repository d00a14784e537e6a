r"""The inpainting upsampler that OpenAI released: 64 to 256 px, 398,368,198 parameters.

    python train.py --config configs/upsample256.py --data.source folder --data.path images/
    python train.py --config configs/upsample256_inpaint.py --data.source folder \
        --data.path images/

The second command goes on from the first's runs/upsample256: four more input channels, the known
pixels of the large image and their mask, whose weights start as zeros; it sees all of the small
image (section 3.3, arXiv 2112.10741). The regions erased are "random", and no more is published:
those here are the defaults of data.masks. `--train.init-from` names another run.
Hardware: made for a TPU pod or several GPUs; not trained by this project.
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
