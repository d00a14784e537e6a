"""Base model of the shipped demo: 32 px scenes, 4.2M parameters.

    python train.py --config scenes_base32
    python -m glide_jax.evaluation.scenes --checkpoint runs/scenes_base32 --n 256 --steps 25

Hardware: a CPU. The shipped model was trained by the curriculum in docs/training.md; its training
time and accuracy are in glide_jax/demo/base/MODEL_CARD.md. Differences from the paper, and their
reasons, are those of scenes_tiny.
"""

from glide_jax.config import (
    Config,
    DataConfig,
    DiffusionConfig,
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
            text=TextConfig(vocab_size=512, length=24, width=128, layers=4, heads=4),
            unet=UNetConfig(
                resolution_px=32,
                channels=32,
                channel_mult=(1, 2, 4),
                res_blocks=1,
                attention_px=(8,),
                head_width=32,
            ),
            dtype="float32",
        ),
        diffusion=DiffusionConfig(prediction="v", timesteps="rising"),
        data=DataConfig(caption_dropout=0.1),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=50, ema_decay=0.998),
        sample=SampleConfig(sampler="ddim", steps="50"),
        train=TrainConfig(
            steps=60_000,
            batch_examples=32,
            checkpoint_every_steps=500,
            sample_every_steps=2000,
            validate_every_steps=1000,
            validation_examples=256,
        ),
    )
