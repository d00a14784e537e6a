r"""Decoder of Karlo: 64 px, 893,318,086 parameters (kakaobrain/karlo).

    python train.py --config unclip_karlo_decoder --data.source folder images/ \
        --train.clip-run karlo/clip

It reads the text states of OpenAI's ViT-L/14 CLIP and has no text transformer of its own. Sizes and
drop rates are those of Karlo's published configs; its training code and optimizer are not
published. To fine-tune the released weights, convert them (docs/unclip.md) and add
--train.init-from karlo/decoder.

Hardware: a TPU pod or several GPUs. Not trained by this project.
"""

from glide_jax.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    SampleConfig,
    TextConfig,
    Tfds,
    TrainConfig,
    UNetConfig,
)


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            text=TextConfig(
                encoder="clip", vocab_size=49_408, length=77, width=1536, clip_width=768
            ),
            unet=UNetConfig(channels=320, dropout=0.1),  # the rest is as in GLIDE
            image_embedding_width=768,
            image_tokens=4,
            remat="blocks",
        ),
        data=DataConfig(
            source=Tfds("coco_captions", caption_key="captions/text"),
            validation_split="val",
            crop="random",  # not published: a choice
            caption_dropout=0.3,
            embedding_dropout=0.1,
        ),
        optim=OptimConfig(learning_rate=1.2e-4),  # not published: unCLIP's (table 3)
        sample=SampleConfig(sampler="ddpm", steps="50", guidance_scale=8.0),
        train=TrainConfig(
            clip_run="karlo/clip",
            steps=1_000_000,
            batch_examples=2048,  # not published: unCLIP's (table 3)
        ),
    )
