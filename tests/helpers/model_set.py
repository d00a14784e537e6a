"""A set of small compatible models with random weights, for tests of several models."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from helpers import tiny

from glide_jax.config import (
    ClipConfig,
    ClipImageConfig,
    ClipTextConfig,
    Config,
    DiffusionConfig,
    SampleConfig,
)
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.tokenizers.clip_bpe import ClipTokenizer
from glide_jax.models.build import build_network
from glide_jax.runs.checkpoint import Checkpoints
from glide_jax.runs.folder import Run

SMALL_PX, LARGE_PX = 8, 16
CAPTIONS = [f"all {name}" for name in ("red", "green", "blue", "white", "black")]


def upsampler_config(inpaint: bool) -> Config:
    base = tiny.get_config()
    unet = dataclasses.replace(base.model.unet, resolution_px=LARGE_PX, attention_px=())
    model = dataclasses.replace(base.model, unet=unet, low_res_px=SMALL_PX, inpaint=inpaint)
    sample = SampleConfig(sampler="ddim", steps="4", guidance_scale=1.0, temperature=0.997)
    diffusion = DiffusionConfig(schedule="linear")
    return dataclasses.replace(base, model=model, sample=sample, diffusion=diffusion)


def inpaint_config() -> Config:
    base = tiny.get_config()
    return dataclasses.replace(base, model=dataclasses.replace(base.model, inpaint=True))


def clip_config() -> Config:
    model = ClipConfig(
        text=ClipTextConfig(vocab_size=600, length=8, width=32, layers=1, heads=2),
        image=ClipImageConfig(resolution_px=SMALL_PX, patch_px=4, width=32, layers=1, heads=2),
        embedding_width=16,
        dtype="float32",
    )
    return Config(model=model)


def write_random_run(folder: Path, config: Config, tokenizer: Tokenizer | ClipTokenizer) -> None:
    """A run folder with random parameters, even where training starts at zero."""
    network = build_network(config.model)
    rng = np.random.default_rng(0)
    params = {
        name: value + 0.05 * rng.standard_normal(value.shape, np.float32)
        for name, value in network.init(seed=0).items()
    }
    Run.create(folder, config, tokenizer)
    checkpoints = Checkpoints(folder, max_checkpoints=1)
    checkpoints.save_ema(jax.device_put(params))
    checkpoints.close()


def write_set(folder: Path) -> None:
    """The models upsample, base-inpaint, upsample-inpaint and clip; no base model."""
    tokenizer = Tokenizer.train(CAPTIONS, 300)
    for name, config in (
        ("upsample", upsampler_config(inpaint=False)),
        ("base-inpaint", inpaint_config()),
        ("upsample-inpaint", upsampler_config(inpaint=True)),
    ):
        write_random_run(folder / name, config, tokenizer)
    write_random_run(folder / "clip", clip_config(), ClipTokenizer.train(CAPTIONS, 600))
