"""The noised CLIP that OpenAI released: 64 px, image tower 86,443,776 and text tower 71,679,488.

    python train.py --config configs/noised_clip.py --data.source folder --data.path images/

It sees images with the base model's noise, and is told the time (section 3.4, arXiv 2112.10741).
Of this smaller one nothing is published: iterations, batch and weight decay are those of the
paper's last one (configs/noised_clip_vit_l.py), all else is from CLIP's ViT-B (arXiv 2103.00020).
Hardware: made for a TPU pod; not trained by this project.
"""

from glide_jax.config import ClipConfig, Config, DataConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ClipConfig(),  # the released sizes are the defaults
        data=DataConfig(
            source="tfds",
            name="coco_captions",
            tokenizer="openai/clip-vit-base-patch32",
            crop="random",  # CLIP
        ),
        optim=OptimConfig(
            learning_rate=5e-4,  # not published: CLIP's ViT-B's
            b2=0.98,  # not published: CLIP's
            eps=1e-6,  # not published: CLIP's
            weight_decay=0.0125,  # paper, of its last one
            warmup_steps=2000,  # not published: CLIP's
            decay_steps=390_000,  # not published: a cosine to the end, as CLIP
        ),
        train=TrainConfig(
            steps=390_000,  # paper, of its last one
            batch_examples=32_768,  # paper, of its last one
        ),
    )
