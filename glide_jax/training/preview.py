"""Grids that show what a model in training draws, of the same prompts and seeds every time."""

import dataclasses
import math

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from glide_jax.config import Config
from glide_jax.data.loader import Example, validation_examples
from glide_jax.data.records import Source
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.images import draw_grid
from glide_jax.sampling.stage import Conditions, Known, Stage, Weights, require_usable

IMAGES = 8
HIDDEN_GRAY = 128
"""Level shown where an image is to be painted."""


class Preview:
    """Draws the grids.

    A base model draws train.sample_prompts, or the captions of the first validation images. An
    upsampler or inpainting model is given those images, and shown between what it was given and
    the whole image.

    Args:
        config: of the run.
        tokenizer: the run's own.
        held_out: the validation split.

    Raises:
        UserError: config.sample cannot work.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer, held_out: Source) -> None:
        self._config = config
        # Guidance by CLIP would need one; nobody wants to wait for it while training.
        self._settings = dataclasses.replace(config.sample, clip_guidance_scale=0.0)
        require_usable(config, self._settings)
        self._tokenizer = tokenizer
        self._stage: Stage | None = None
        self._examples: list[Example] = []
        self._prompts = list(config.train.sample_prompts)
        if config.denoiser.condition_channels or not self._prompts:
            self._examples = validation_examples(held_out, config, IMAGES)
            self._prompts = [example.caption for example in self._examples]

    def draw(self, params: Weights) -> UInt8[np.ndarray, "grid_h grid_w 3"]:
        """The grid of these parameters."""
        if self._stage is None:
            # Nobody else takes part, so as many share the parameters as are here.
            fsdp = math.gcd(self._config.train.fsdp, jax.local_device_count())
            self._stage = Stage(self._config, params, self._tokenizer, fsdp)
        self._stage.use(params)
        model, prompts = self._config.denoiser, self._prompts
        if not model.condition_channels:
            drawn = self._draw(Conditions())
            return draw_grid(drawn, prompts, columns=4)

        whole = np.stack([example.pixels for example in self._examples])
        given, low_res, known = whole, None, None
        if model.low_res_px:
            low_res = _resized(whole, model.low_res_px, Image.Resampling.BOX)
            given = _resized(low_res, model.resolution_px, Image.Resampling.NEAREST)
        if model.inpaint:
            mask = np.stack([e.mask for e in self._examples if e.mask is not None])
            known = Known(whole, mask)
            given = np.where(mask, whole, given if model.low_res_px else HIDDEN_GRAY)
        drawn = self._draw(Conditions(low_res=low_res, known=known))
        rows = np.stack([given, drawn, whole], 1).reshape(-1, *whole.shape[1:])
        captions = [c for p in prompts for c in (f"given: {p}", "drawn", "the whole image")]
        return draw_grid(rows.astype(np.uint8), captions, columns=6)

    def _draw(self, conditions: Conditions) -> UInt8[np.ndarray, "b h w 3"]:
        assert self._stage is not None
        seeds = [0] * len(self._prompts)
        drawn = self._stage.draw(self._prompts, seeds, self._settings, conditions)
        self._stage.use({})  # until the next time the memory is training's
        return drawn


def _resized(
    images: UInt8[np.ndarray, "b h w 3"], px: int, how: Image.Resampling
) -> UInt8[np.ndarray, "b {px} {px} 3"]:
    return np.stack([np.asarray(Image.fromarray(p).resize((px, px), how)) for p in images])
