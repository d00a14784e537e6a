"""The demo: 24 px pictures of the built-in scenes, in minutes on a laptop's CPU.

    python train.py --config configs/scenes_tiny.py

Two things differ from the paper, because a few hundred steps must do: the pictures are smaller, and
the network predicts velocity instead of noise. In eps's squared error a caption counts for almost
nothing, and training comes to it late. With v, 300 steps are enough to draw eight pictures of one
colour each by their captions (tests/test_train.py; train tests/tiny.py with
--diffusion.prediction eps to compare).
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
                resolution_px=24,
                channels=32,
                channel_mult=(1, 1, 3),
                res_blocks=1,
                attention_px=(12, 6),
                head_width=32,
            ),
            dtype="float32",
        ),
        diffusion=DiffusionConfig(prediction="v"),
        data=DataConfig(source="scenes", caption_drop=0.1),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=50, decay_steps=900, ema_decay=0.98),
        sample=SampleConfig(sampler="ddim", steps="50", guidance_scale=3.0),
        train=TrainConfig(
            steps=900,
            batch_examples=32,
            log_every_steps=25,
            checkpoint_every_steps=100,
            sample_every_steps=450,
            validate_every_steps=450,
            validation_examples=256,
        ),
    )
