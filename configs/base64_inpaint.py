"""Released inpainting base model: 64 px, 385,037,638 parameters.

    python train.py --config base64 --data.source folder images/
    python train.py --config base64_inpaint --data.source folder images/

The second command starts from runs/base64 (or --train.init-from). It adds four input channels, the
known pixels and their mask, with weights initialized to zero (section 3.3, arXiv 2112.10741), and
trains with 20% of the captions empty, for classifier-free guidance. The paper erases "random
regions"; the masks here are the defaults of data.masks.

Hardware: as base64, for fewer steps. Not trained by this project.
"""

import dataclasses
from pathlib import Path

from glide_jax.cli import load_config
from glide_jax.config import Config
from glide_jax.pretrained.defaults import RELEASED


def get_config() -> Config:
    base = load_config(Path(__file__).with_name("base64.py"))
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.denoiser, inpaint=True),
        data=dataclasses.replace(base.data, caption_dropout=0.2),  # paper
        sample=RELEASED["base-inpaint"].sample,
        train=dataclasses.replace(
            base.train,
            init_from="runs/base64",
            steps=500_000,  # paper, for guidance and inpainting together
        ),
    )
