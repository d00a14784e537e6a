"""The base model that OpenAI released ("filtered"): 64 px, 385,030,726 parameters.

    python train.py --config configs/base64.py --data.source folder --data.path pictures/

The paper trained it for 1.1M iterations and 500K more with classifier-free guidance and inpainting
(appendix C, arXiv 2112.10741). Batch size and optimiser of this model are not published: batch and
dropout are those of ADM at 64 px (table 11, arXiv 2105.05233), EMA and betas as well.
Hardware: made for a TPU pod or several GPUs; not trained by this project.
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
            text=TextConfig(vocab_size=50_257, length=128, width=512, layers=16, heads=8),
            unet=UNetConfig(
                resolution_px=64,
                channels=192,
                channel_mult=(1, 2, 3, 4),
                res_blocks=3,
                attention_px=(32, 16, 8),
                head_width=64,
                dropout=0.1,
            ),
            remat=True,
        ),
        data=DataConfig(source="tfds", name="coco_captions", tokenizer="gpt2", crop="random"),
        optim=OptimConfig(learning_rate=3e-4, ema_decay=0.9999),
        sample=SampleConfig(sampler="ddpm", steps="100", guidance_scale=3.0),
        train=TrainConfig(steps=1_600_000, batch_examples=2048),
    )
