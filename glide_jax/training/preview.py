"""Samples during training, of the same prompts and seeds every time: grids, and for metrics."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from glide_jax.config import Config, ModelConfig
from glide_jax.data.examples import Example
from glide_jax.data.records import Source
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.validation import validation_examples
from glide_jax.images import draw_grid, resized
from glide_jax.runs.folder import Run
from glide_jax.sampling.conditions import Conditions, Known
from glide_jax.sampling.settings import require_usable
from glide_jax.sampling.stage import Stage, Weights

IMAGES = 8
HIDDEN_GRAY = 128
"""Level of the pixels to inpaint in the images given to a model."""


class HeldOutSampler:
    """Samples of a model that is training, by its config.sample.

    Args:
        config: of the run.
        tokenizer: of the run.

    Raises:
        UserError: config.sample has settings that the model cannot use.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        self._config, self._tokenizer = config, tokenizer
        # CLIP guidance needs a CLIP, and takes too long during training.
        self._settings = dataclasses.replace(config.sample, clip_guidance_scale=0.0)
        require_usable(config, self._settings)
        self._stage: Stage | None = None

    def sample(
        self,
        params: Weights,
        prompts: Sequence[str],
        seeds: Sequence[int],
        conditions: Conditions = Conditions(),  # noqa: B008 (immutable)
    ) -> UInt8[np.ndarray, "b h w 3"]:
        """Samples by these parameters; other arguments as of `Stage.sample`."""
        if self._stage is None:
            # Only this process samples: the parameters are sharded over its devices.
            fsdp = math.gcd(self._config.train.fsdp, jax.local_device_count())
            self._stage = Stage(self._config, params, self._tokenizer, fsdp)
        else:
            self._stage.use(params)
        samples = self._stage.sample(prompts, seeds, self._settings, conditions)
        self._stage.use({})  # frees its memory for training
        return samples

    def conditions(self, examples: Sequence[Example]) -> Conditions:
        """What the model is given of held-out images; nothing for a base model."""
        model, low_res, known = self._config.denoiser, None, None
        originals = np.stack([example.pixels for example in examples])
        if model.low_res_px:
            low_res = resized(originals, model.low_res_px, Image.Resampling.BOX)
        if model.inpaint:
            mask = np.stack([e.mask for e in examples if e.mask is not None])
            known = Known(originals, mask)
        return Conditions(low_res=low_res, known=known)


class Preview:
    """Samples for a fixed set of prompts.

    A base model samples train.sample_prompts, or the captions of the first validation images. An
    upsampler or inpainting model gets those images; its grid shows each input, sample and original
    side by side.

    Args:
        config: of the run.
        tokenizer: of the run.
        held_out: the validation split.

    Raises:
        UserError: config.sample has settings that the model cannot use.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer, held_out: Source) -> None:
        self._model = config.denoiser
        self._sampler = HeldOutSampler(config, tokenizer)
        self._examples: list[Example] = []
        self._prompts = list(config.train.sample_prompts)
        if config.denoiser.condition_channels or not self._prompts:
            self._examples = validation_examples(held_out, config, IMAGES, full_size=True)
            self._prompts = [example.caption for example in self._examples]

    @classmethod
    def open(cls, run: Run, held_out: Source) -> "Preview | None":
        """The preview of a run; None if it has none, or generates no images."""
        if not isinstance(run.config.model, ModelConfig) or not run.config.train.sample_every_steps:
            return None
        return cls(run.config, run.tokenizer, held_out)

    def sample(self, params: Weights) -> UInt8[np.ndarray, "grid_h grid_w 3"]:
        """The grid of samples with these parameters."""
        model, prompts = self._model, self._prompts
        seeds = [0] * len(prompts)
        if not model.condition_channels:
            return draw_grid(self._sampler.sample(params, prompts, seeds), prompts, columns=4)

        originals = np.stack([example.pixels for example in self._examples])
        conditions = self._sampler.conditions(self._examples)
        given = originals
        if conditions.low_res is not None:
            given = resized(conditions.low_res, model.resolution_px, Image.Resampling.NEAREST)
        if conditions.known is not None:
            unknown = given if model.low_res_px else HIDDEN_GRAY
            given = np.where(conditions.known.mask, originals, unknown)
        samples = self._sampler.sample(params, prompts, seeds, conditions)
        rows = np.stack([given, samples, originals], 1).reshape(-1, *originals.shape[1:])
        captions = [c for p in prompts for c in (f"given: {p}", "sample", "original")]
        return draw_grid(rows.astype(np.uint8), captions, columns=6)
