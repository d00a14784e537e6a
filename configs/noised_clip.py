"""Released noised CLIP: 64 px, image tower 86,443,776 and text tower 71,679,488 parameters.

    python train.py --config noised_clip --data.source folder images/

It sees images with the base model's noise and is conditioned on the timestep (section 3.4, arXiv
2112.10741). Nothing is published about its training: iterations, batch and weight decay are those
of the paper's ViT-L (noised_clip_vit_l), other values those of CLIP's ViT-B (arXiv 2103.00020).

Hardware: a TPU pod. Not trained by this project. Planned, not measured (docs/scaling.md): with
--model.remat blocks it takes 80 GiB of each of eight GPUs, more than H100 have.
"""

from glide_jax.config import ClipConfig, Config, DataConfig, OptimConfig, Tfds, TrainConfig


def get_config() -> Config:
    return Config(
        model=ClipConfig(),  # the released sizes are the defaults
        data=DataConfig(
            source=Tfds("coco_captions", caption_key="captions/text"),
            validation_split="val",
            tokenizer="openai/clip-vit-base-patch32",
            crop="random",  # CLIP
        ),
        optim=OptimConfig(
            learning_rate=5e-4,  # not published: CLIP's ViT-B's
            b2=0.98,  # not published: CLIP's
            eps=1e-6,  # not published: CLIP's
            weight_decay=0.0125,  # paper, for its ViT-L
            warmup_steps=2000,  # not published: CLIP's
            decay_steps=390_000,  # not published: a cosine to the end, as CLIP
        ),
        train=TrainConfig(
            steps=390_000,  # paper, for its ViT-L
            batch_examples=32_768,  # paper, for its ViT-L
        ),
    )
