"""The inpainting upsampler that OpenAI released: 64 to 256 px, 398,368,198 parameters.

    python -m glide_jax.models.convert upsample_inpaint.pt --to runs/released

The upsampler with four more input channels, the known pixels of the large picture and their mask,
whose weights start as zeros; it sees all of the small picture (section 3.3, arXiv 2112.10741). How
long it was fine-tuned, and which regions were erased, is not published: the 500K iterations are
the inpainting base model's, all else is the upsampler's configuration's.
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
            inpaint=True,
            remat=True,
        ),
        diffusion=DiffusionConfig(schedule="linear"),
        data=DataConfig(source="tfds", name="coco_captions", tokenizer="gpt2", crop="random"),
        optim=OptimConfig(learning_rate=1e-4, ema_decay=0.9999),
        # The released notebooks': as the upsampler's, but ancestral.
        sample=SampleConfig(sampler="ddpm", steps="fast27", guidance_scale=1.0, temperature=0.997),
        train=TrainConfig(steps=500_000, batch_examples=256),
    )
