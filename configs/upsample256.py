"""The upsampler that OpenAI released: 64 to 256 px, 398,361,286 parameters.

    python -m glide_jax.models.convert upsample.pt --to runs/released

A U-Net as the base model's that also sees the smaller picture, and the caption as well (section
3.1, arXiv 2112.10741). The paper trained it for 400K iterations. Batch size and optimiser of this
model are not published: these are those of ADM's 64 to 256 px upsampler (arXiv 2105.05233), which
has no dropout.
Hardware: made for a TPU pod or several GPUs; not trained by this project.
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
            text=TextConfig(vocab_size=50_257, length=128, width=512, layers=16, heads=8),
            unet=UNetConfig(
                resolution_px=256,
                channels=192,
                channel_mult=(1, 1, 2, 2, 4, 4),
                res_blocks=2,
                attention_px=(32, 16, 8),
                head_width=64,
            ),
            low_res_px=64,
            remat=True,
        ),
        diffusion=DiffusionConfig(schedule="linear"),
        data=DataConfig(source="tfds", name="coco_captions", tokenizer="gpt2", crop="random"),
        optim=OptimConfig(learning_rate=1e-4, ema_decay=0.9999),
        # The released notebooks': 27 steps, DDIM, no guidance, a little less noise than 1.
        sample=SampleConfig(sampler="ddim", steps="fast27", guidance_scale=1.0, temperature=0.997),
        train=TrainConfig(steps=400_000, batch_examples=256),
    )
