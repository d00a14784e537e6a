"""The noised CLIP that OpenAI released: 64 px, image tower 86,443,776 and text tower 71,679,488.

    python -m glide_jax.models.convert clip_text_enc.pt clip_image_enc.pt --to runs/released

It sees pictures with the base model's noise, and is told the time (section 3.4, arXiv 2112.10741).
The paper trained one of ViT-L size for 390K iterations at batch 32K with weight decay 0.0125;
of this smaller one nothing is published. Learning rate, betas, epsilon and warm-up are those of
CLIP's ViT-B (arXiv 2103.00020).
Hardware: made for a TPU pod; not trained by this project.
"""

from glide_jax.config import (
    ClipConfig,
    ClipImageConfig,
    ClipTextConfig,
    Config,
    DataConfig,
    OptimConfig,
    TrainConfig,
)


def get_config() -> Config:
    return Config(
        model=ClipConfig(
            text=ClipTextConfig(vocab_size=65_536, length=77, width=512, layers=12, heads=8),
            image=ClipImageConfig(resolution_px=64, patch_px=4, width=768, layers=12, heads=12),
            embedding_width=512,
            steps=1000,
        ),
        data=DataConfig(
            source="tfds",
            name="coco_captions",
            tokenizer="openai/clip-vit-base-patch32",
            crop="random",
            caption_drop=0.0,  # without a caption there is nothing to compare
        ),
        optim=OptimConfig(
            learning_rate=5e-4,
            b2=0.98,
            eps=1e-6,
            weight_decay=0.0125,
            warmup_steps=2000,
            decay_steps=390_000,
        ),
        train=TrainConfig(steps=390_000, batch_examples=32_768),
    )
