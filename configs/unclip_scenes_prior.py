"""unCLIP's prior for the shipped demo: from captions of scenes to embeddings of the demo's CLIP.

    python train.py --config unclip_scenes_prior

Hardware: a CPU. The shipped model's training time and accuracy are in
glide_jax/demo/prior/MODEL_CARD.md.
"""

from glide_jax.config import (
    ClipStatesConfig,
    Config,
    DataConfig,
    OptimConfig,
    PriorConfig,
    SampleConfig,
    TrainConfig,
)


def get_config() -> Config:
    return Config(
        model=PriorConfig(
            text=ClipStatesConfig(vocab_size=800, length=32, width=128),
            embedding_width=128,
            width=192,
            layers=4,
            heads=6,
            resolution_px=32,
            dtype="float32",
        ),
        data=DataConfig(caption_dropout=0.1),
        optim=OptimConfig(learning_rate=1e-3, weight_decay=0.06, warmup_steps=200, ema_decay=0.998),
        sample=SampleConfig(sampler="ddpm", steps="25", guidance_scale=1.0),
        train=TrainConfig(
            clip_run="demo/clip",
            steps=10_000,
            batch_examples=128,
            checkpoint_every_steps=500,
            sample_every_steps=0,
            validate_every_steps=500,
            validation_examples=256,
        ),
    )
