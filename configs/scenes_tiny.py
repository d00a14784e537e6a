"""The demo: 32 px pictures of the built-in scenes on a laptop's CPU.

python train.py --config configs/scenes_tiny.py
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
            text=TextConfig(vocab_size=512, length=24, width=128, layers=2, heads=4),
            unet=UNetConfig(
                resolution_px=32,
                channels=32,
                channel_mult=(1, 1, 2, 4),
                res_blocks=1,
                attention_px=(8, 4),
                head_width=32,
            ),
            dtype="float32",
        ),
        diffusion=DiffusionConfig(prediction="v"),
        data=DataConfig(source="scenes", caption_drop=0.1),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=100, decay_steps=1000, ema_decay=0.98),
        sample=SampleConfig(sampler="ddim", steps="50", guidance_scale=3.0),
        train=TrainConfig(
            steps=1000,
            batch_examples=32,
            log_every_steps=25,
            checkpoint_every_steps=250,
            sample_every_steps=500,
            validate_every_steps=500,
            validation_examples=256,
        ),
    )
