"""Released base model, first stage: 64 px, 385,030,726 parameters.

    python train.py --config base64 --data.source folder images/

The paper trained its small model for 1.1M iterations on filtered images, then for 500K with
classifier-free guidance and inpainting (appendix C, arXiv 2112.10741). This is the first stage;
base64_cfg and base64_inpaint fine-tune it, and base64_3b5 is the paper's large model. The paper's
images are not public; the default data set is COCO.

Hardware: a TPU pod or several GPUs. Not trained by this project. Planned, not measured
(docs/scaling.md): with --train.micro-batches 64 it fits a GPU of 24 GB; a step takes an RTX 4090
29 s, 373 days in all.
"""

from glide_jax.config import (
    Config,
    DataConfig,
    ModelConfig,
    SampleConfig,
    Tfds,
    TrainConfig,
    UNetConfig,
)


def get_config() -> Config:
    return Config(
        # The sizes of text transformer and U-Net are the defaults.
        model=ModelConfig(
            unet=UNetConfig(dropout=0.1),  # not published: ADM's at 64 px (arXiv 2105.05233)
            remat="blocks",
        ),
        data=DataConfig(
            source=Tfds("coco_captions", caption_key="captions/text"),
            validation_split="val",
            tokenizer="gpt2",
            crop="random",  # not published: a choice
            caption_dropout=0.0,  # paper: the fine-tuning drops captions, not the first stage
        ),
        # Optimizer not published: the defaults, which are ADM's at 64 px.
        sample=SampleConfig(guidance_scale=1.0),  # empty captions are trained in base64_cfg
        train=TrainConfig(
            steps=1_100_000,  # paper
            batch_examples=2048,  # not published for this size: the paper's larger model's
        ),
    )
