"""Base model of emoji artwork, 64 px: the demo of real captioned images in benchmarks/gpu_demo.sh.

    python train.py --config benchmarks/emoji64.py --data.source folder out/emoji

8,224,198 parameters, whose bfloat16 export is a file below 16 MiB. Hardware: one GPU, minutes. Not
trained by this project: no expected result.
"""

from glide_jax.config import (
    Config,
    DataConfig,
    DiffusionConfig,
    Folder,
    ModelConfig,
    OptimConfig,
    SampleConfig,
    TextConfig,
    TrainConfig,
    UNetConfig,
)


def get_config() -> Config:
    """The configuration."""
    return Config(
        model=ModelConfig(
            text=TextConfig(vocab_size=1024, length=32, width=192, layers=3, heads=3),
            unet=UNetConfig(
                channels=64,
                channel_mult=(1, 1, 2, 2),
                res_blocks=1,
                attention_px=(16, 8),
                head_width=64,
            ),
        ),
        diffusion=DiffusionConfig(prediction="v"),
        data=DataConfig(source=Folder("out/emoji"), caption_dropout=0.1),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=100, ema_decay=0.998),
        sample=SampleConfig(sampler="ddim", steps="50"),
        train=TrainConfig(
            steps=100_000,
            batch_examples=256,
            checkpoint_every_steps=5_000,
            sample_every_steps=0,
            validate_every_steps=1_000,
            validation_examples=64,
        ),
    )
