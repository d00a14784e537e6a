"""Configuration of the smallest model with every kind of layer, for tests and train.py --config.

Its U-Net has one level, and attention in the middle block only: a train step with two levels takes
twice as long to compile, and with attention at its level has a third more kernels.
"""

from dataclasses import replace

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
            text=TextConfig(vocab_size=300, length=8, width=32, layers=1, heads=2),
            unet=UNetConfig(
                resolution_px=8,
                channels=32,
                channel_mult=(1,),
                res_blocks=1,
                attention_px=(),
                head_width=32,
            ),
            dtype="float32",
        ),
        diffusion=DiffusionConfig(prediction="v", timesteps="rising"),
        data=DataConfig(caption_dropout=0.1, loader_threads=1),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=10, ema_decay=0.95),
        sample=SampleConfig(sampler="ddim", steps="10", guidance_scale=2.0),
        train=TrainConfig(
            steps=240,
            batch_examples=8,
            log_every_steps=10,
            checkpoint_every_steps=80,
            sample_every_steps=240,
            validate_every_steps=120,
            validation_examples=8,
        ),
    )


def two_levels(config: Config) -> Config:
    """`config` with a second level of its U-Net, and attention there only."""
    unet = config.model.unet
    unet = replace(unet, channel_mult=(1, 2), attention_px=(unet.resolution_px // 2,))
    return replace(config, model=replace(config.model, unet=unet))
