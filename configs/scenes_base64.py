r"""Base model for one GPU or TPU chip: 64 px scenes.

    python train.py --config scenes_base64

Hardware: one accelerator. The planner computes 10.9 GiB for the 128 images of a step on a TPU chip:

    python -m glide_jax.plan --config scenes_base64 --topology v5p:2x2x1 \
        --train.batch-examples 512 --effort quick

A GPU was not measured. It also stores attention weights: the backward pass has up to 57 GiB of
activations, 3.5 GiB with --model.remat blocks, so add that flag on a GPU with less than 80 GB. For
a CPU, use scenes_base32. Not trained by this project: no expected result.
"""

from glide_jax.config import (
    Config,
    ModelConfig,
    OptimConfig,
    SampleConfig,
    TextConfig,
    TrainConfig,
    UNetConfig,
)


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            text=TextConfig(vocab_size=1024, length=48, width=256, layers=6),
            unet=UNetConfig(
                channels=128, channel_mult=(1, 2, 3), res_blocks=2, attention_px=(32, 16)
            ),
        ),
        optim=OptimConfig(ema_decay=0.9995),
        sample=SampleConfig(sampler="ddim", steps="50"),
        train=TrainConfig(
            steps=50_000,
            batch_examples=128,
            checkpoint_every_steps=2500,
            sample_every_steps=2500,
            validate_every_steps=2500,
        ),
    )
