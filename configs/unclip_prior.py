r"""Diffusion prior of unCLIP's paper: 1,225,561,088 parameters (arXiv 2204.06125).

    python train.py --config unclip_prior --data.source folder images/ \
        --train.clip-run runs/unclip_clip

Values of table 3 are marked paper. The paper's text context of 256 is not that of a CLIP; here the
prior reads the states of the CLIP that embeds images, as Karlo's. Its Analytic-DPM sampler is not
implemented. python -m glide_jax.embed computes the images' embeddings once for all epochs.

Hardware: a TPU pod or several GPUs. Not trained by this project.
"""

from glide_jax.config import (
    ClipStatesConfig,
    Config,
    DataConfig,
    OptimConfig,
    PriorConfig,
    SampleConfig,
    Tfds,
    TrainConfig,
)


def get_config() -> Config:
    return Config(
        model=PriorConfig(
            text=ClipStatesConfig(
                vocab_size=49_408,  # of unclip_clip
                length=77,  # of unclip_clip
                width=1024,  # paper
            ),
            embedding_width=1024,  # paper
            width=2048,  # paper
            layers=24,  # paper
            heads=32,  # paper
            resolution_px=256,  # paper: its CLIP's
            remat="blocks",
        ),
        # The noise schedule is the default, cosine with 1000 steps: paper.
        data=DataConfig(
            source=Tfds("coco_captions", caption_key="captions/text"),
            validation_split="val",
            caption_dropout=0.1,  # paper
        ),
        optim=OptimConfig(
            learning_rate=1.1e-4,  # paper
            b2=0.96,  # paper
            eps=1e-6,  # paper
            weight_decay=6e-2,  # paper
            clip_norm=0.5,  # not published: DALLE2-pytorch's
            ema_decay=0.9999,  # paper
        ),
        sample=SampleConfig(
            sampler="ddpm",  # paper: Analytic-DPM
            steps="64",  # paper
            guidance_scale=1.0,  # paper: section 5.5 guides the decoder only
        ),
        train=TrainConfig(
            clip_run="runs/unclip_clip",
            steps=600_000,  # paper
            batch_examples=4096,  # paper
        ),
    )
