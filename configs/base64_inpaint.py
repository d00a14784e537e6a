"""The inpainting base model that OpenAI released: 64 px, 385,037,638 parameters.

    python -m glide_jax.models.convert base_inpaint.pt --to runs/released

The base model with four more input channels, the known pixels and their mask, whose weights start
as zeros (section 3.3, arXiv 2112.10741). The paper fine-tuned the base model for 500K iterations,
with classifier-free guidance and inpainting together; which regions it erased is not published.
Batch size and optimiser are the base model's configuration's.
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
            inpaint=True,
            remat=True,
        ),
        data=DataConfig(source="tfds", name="coco_captions", tokenizer="gpt2", crop="random"),
        optim=OptimConfig(learning_rate=3e-4, ema_decay=0.9999),
        sample=SampleConfig(sampler="ddpm", steps="100", guidance_scale=5.0),
        train=TrainConfig(steps=500_000, batch_examples=2048),
    )
