"""The base model that OpenAI released, fine-tuned for guidance: 64 px, 385,030,726 parameters.

    python train.py --config configs/base64.py --data.source folder --data.path images/
    python train.py --config configs/base64_cfg.py --data.source folder --data.path images/

The second command goes on from the first's runs/base64, exactly as before but with 20% of the
captions empty, for classifier-free guidance (section 3.2, arXiv 2112.10741).
`--train.init-from` names another run.
Hardware: made for a TPU pod or several GPUs; not trained by this project.
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
        data=dataclasses.replace(base.data, caption_dropout=0.2),  # paper
        sample=RELEASED["base"].sample,
        train=dataclasses.replace(
            base.train,
            init_from="runs/base64",
            steps=500_000,  # paper, for guidance and inpainting together
        ),
    )
