r"""Base model for one GPU or TPU chip: 64 px scenes.

    python train.py --config scenes_base64

Hardware: one accelerator. The planner computes, for the 128 images of a step, 10.9 GiB on a TPU
chip, and 13.7 GiB and 0.46 s on an RTX 4090; neither was measured:

    python -m glide_jax.plan --config scenes_base64 --topology v5p:2x2x1 \
        --train.batch-examples 512 --effort quick
    python -m glide_jax.plan --config scenes_base64 --topology rtx4090

GPUs before Ampere also store attention weights: add --model.remat blocks there. For a CPU, use
scenes_base32. Not trained by this project: no expected result.
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
