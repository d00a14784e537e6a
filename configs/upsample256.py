"""Released upsampler: 64 to 256 px, 398,361,286 parameters.

    python train.py --config upsample256 --data.source folder images/

The base model's U-Net, conditioned also on the low-resolution image (section 3.1, arXiv
2112.10741). It inverts an area average, as ADM's upsampler does (arXiv 2105.05233), from which
unpublished values are taken.

Hardware: a TPU pod or several GPUs. Not trained by this project. Planned, not measured
(docs/scaling.md): it takes 50 GiB of each of eight H100 and 0.45 s a step, 2.1 days in all.
"""

from glide_jax.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    Tfds,
    TrainConfig,
    UNetConfig,
)
from glide_jax.pretrained.defaults import RELEASED


def get_config() -> Config:
    diffusion, sample = RELEASED["upsample"]
    return Config(
        model=ModelConfig(
            # ADM's 64 to 256 px upsampler (paper), which has no dropout either.
            unet=UNetConfig(resolution_px=256, channel_mult=(1, 1, 2, 2, 4, 4), res_blocks=2),
            low_res_px=64,
            remat="blocks",
        ),
        diffusion=diffusion,
        data=DataConfig(
            source=Tfds("coco_captions", caption_key="captions/text"),
            validation_split="val",
            tokenizer="gpt2",
            crop="random",  # not published: a choice
            caption_dropout=0.0,  # paper: only the base model is fine-tuned for guidance
        ),
        optim=OptimConfig(learning_rate=1e-4),  # not published: ADM's upsampler's
        sample=sample,
        train=TrainConfig(
            steps=400_000,  # paper
            batch_examples=256,  # not published for this size: ADM's upsampler's
        ),
    )
