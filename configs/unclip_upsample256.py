"""First upsampler of unCLIP's paper: 64 to 256 px, 729,710,726 parameters.

    python train.py --config unclip_upsample256 --data.source folder images/

An ADM upsampler without captions or attention (app. C, arXiv 2204.06125), trained on crops of a
quarter of the side. Its low-resolution images are blurred; the paper's blur is always of 0.6 px,
here it is at most that. Values of table 3 are marked paper.

Hardware: a TPU pod or several GPUs. Not trained by this project.
"""

from glide_jax.config import (
    Config,
    DataConfig,
    LowResConfig,
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
            text=TextConfig(encoder="none", length=1),  # paper: no captions, no guidance
            unet=UNetConfig(
                resolution_px=256,  # paper
                channels=320,  # paper
                channel_mult=(1, 2, 3, 4),  # paper
                res_blocks=3,  # paper
                attention_px=(),  # paper
                middle_attention=False,  # paper
                dropout=0.1,  # paper
            ),
            low_res_px=64,  # paper
            remat="blocks",
        ),
        # The noise process is the default: the paper's cosine schedule.
        data=DataConfig(
            source=Tfds("coco_captions", caption_key="captions/text"),
            validation_split="val",
            crop="random",  # not published: a choice
            low_res=LowResConfig(
                crop_px=64,  # paper: crops of a quarter of the side
                blur_px=0.6,  # paper
            ),
        ),
        optim=OptimConfig(learning_rate=1.2e-4),  # paper, as the defaults b2, eps and EMA decay
        sample=SampleConfig(sampler="ddim", steps="27", guidance_scale=1.0),  # paper
        train=TrainConfig(
            steps=1_000_000,  # paper
            batch_examples=1024,  # paper
        ),
    )
