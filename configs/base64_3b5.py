"""The paper's base model: 3.5 billion parameters, 64 px (section 3.1, arXiv 2112.10741).

    python train.py --config configs/base64_3b5.py --data.source folder --data.path pictures/

U-Net of width 512 (about 2.3B) and a text transformer of 24 layers of 2048 (about 1.2B); 2.5M
iterations at batch 2048. Learning rate, betas, EMA and dropout are not published; these are those
of unCLIP's decoder, a model of the same size (table 3, arXiv 2204.06125).
Hardware: a TPU pod, with parameters sharded by --train.fsdp; not trained by this project.
"""

from glide_jax.config import (
    Config,
    DataConfig,
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
            text=TextConfig(vocab_size=50_257, length=128, width=2048, layers=24, heads=32),
            unet=UNetConfig(
                resolution_px=64,
                channels=512,
                channel_mult=(1, 2, 3, 4),
                res_blocks=3,
                attention_px=(32, 16, 8),
                head_width=64,
                dropout=0.1,
            ),
            remat=True,
        ),
        data=DataConfig(source="tfds", name="coco_captions", tokenizer="gpt2", crop="random"),
        optim=OptimConfig(learning_rate=1.2e-4, ema_decay=0.9999),
        sample=SampleConfig(sampler="ddpm", steps="150", guidance_scale=3.0),
        train=TrainConfig(steps=2_500_000, batch_examples=2048, fsdp=4),
    )
