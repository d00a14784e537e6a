"""Samples during training, of the same prompts and seeds every time: grids, and for metrics."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from glide_jax.config import Config, ModelConfig
from glide_jax.data.examples import Example
from glide_jax.data.records import Source
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.transforms import to_float
from glide_jax.data.validation import validation_examples
from glide_jax.images import draw_grid, resized
from glide_jax.runs.folder import Run
from glide_jax.sampling.conditions import Conditions, Known
from glide_jax.sampling.settings import require_usable
from glide_jax.sampling.stage import Stage, Weights
from glide_jax.shapes import TextStates
from glide_jax.training.frozen_clip import FrozenClip

IMAGES = 8
HIDDEN_GRAY = 128
"""Level of the pixels to inpaint in the images given to a model."""


class HeldOutSampler:
    """Samples of a model that is training, by its config.sample.

    Args:
        config: of the run.
        tokenizer: of the run.
        clip: of train.clip_run, for unCLIP's decoder.

    Raises:
        UserError: config.sample has settings that the model cannot use.
    """

    def __init__(
        self, config: Config, tokenizer: Tokenizer, clip: FrozenClip | None = None
    ) -> None:
        self._config, self._tokenizer, self._clip = config, tokenizer, clip
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
            reads = self._config.denoiser.text.encoder == "transformer"
            tokenizer = self._tokenizer if reads else None
            self._stage = Stage(self._config, params, tokenizer, fsdp)
        else:
            self._stage.use(params)
        samples = self._stage.sample(prompts, seeds, self._settings, conditions)
        self._stage.use({})  # frees its memory for training
        return samples

    def conditions(self, examples: Sequence[Example]) -> Conditions:
        """What the model is given of held-out images; nothing for a base model."""
        model, low_res, known = self._config.denoiser, None, None
        embedding, states, empty = None, None, None
        originals = np.stack([example.pixels for example in examples])
        if model.low_res_px:
            low_res = resized(originals, model.low_res_px, Image.Resampling.BOX)
        if model.inpaint:
            mask = np.stack([e.mask for e in examples if e.mask is not None])
            known = Known(originals, mask)
        if model.image_embedding_width:
            embedding = self._embeddings(examples)
        if model.text.encoder == "clip":
            states = self._states([example.caption for example in examples])
            empty = self._states([""])
        return Conditions(low_res, known, None, embedding, states, empty)

    def _embeddings(self, examples: Sequence[Example]) -> Float[np.ndarray, "b d"]:
        """The embeddings of held-out images: given ones, or by the CLIP."""
        given = [e.embedding for e in examples if e.embedding is not None]
        if given:
            return np.stack(given)
        shown = [e.pixels if e.clip_pixels is None else e.clip_pixels for e in examples]
        clip = self._clip
        assert clip is not None
        return np.asarray(jax.jit(clip.embed_image)(clip.params, to_float(np.stack(shown))))

    def _states(self, captions: Sequence[str]) -> TextStates:
        """The captions as the CLIP sees them."""
        clip = self._clip
        assert clip is not None
        text = self._tokenizer.encode(list(captions), clip.config.text.length)
        return jax.device_get(jax.jit(clip.embed_text)(clip.params, *text))


class Preview:
    """Samples for a fixed set of prompts.

    A base model samples train.sample_prompts, or the captions of the first validation images. An
    upsampler or inpainting model gets those images; its grid shows each input, sample and original
    side by side. unCLIP's decoder gets their embeddings, and its grid shows each image and sample.

    Args:
        config: of the run.
        tokenizer: of the run.
        held_out: the validation split.
        clip: of train.clip_run, for unCLIP's decoder.

    Raises:
        UserError: config.sample has settings that the model cannot use.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        held_out: Source,
        clip: FrozenClip | None = None,
    ) -> None:
        self._model = config.denoiser
        self._sampler = HeldOutSampler(config, tokenizer, clip)
        self._examples: list[Example] = []
        self._prompts = list(config.train.sample_prompts)
        if _takes_images(self._model) or not self._prompts:
            self._examples = validation_examples(held_out, config, IMAGES, full_size=True)
            self._prompts = [example.caption for example in self._examples]

    @classmethod
    def open(cls, run: Run, held_out: Source, clip: FrozenClip | None = None) -> "Preview | None":
        """The preview of a run; None if it has none, or generates no images."""
        if not isinstance(run.config.model, ModelConfig) or not run.config.train.sample_every_steps:
            return None
        return cls(run.config, run.tokenizer, held_out, clip)

    def sample(self, params: Weights) -> UInt8[np.ndarray, "grid_h grid_w 3"]:
        """The grid of samples with these parameters."""
        model, prompts = self._model, self._prompts
        seeds = [0] * len(prompts)
        if not _takes_images(model):
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
        if not model.condition_channels:
            rows = np.stack([originals, samples], 1).reshape(-1, *originals.shape[1:])
            return draw_grid(rows, [c for p in prompts for c in (p, "sample")], columns=4)
        rows = np.stack([given, samples, originals], 1).reshape(-1, *originals.shape[1:])
        captions = [c for p in prompts for c in (f"given: {p}", "sample", "original")]
        return draw_grid(rows.astype(np.uint8), captions, columns=6)


def _takes_images(model: ModelConfig) -> bool:
    """Whether a model is given an image, or its embedding, beside the caption."""
    return bool(model.condition_channels or model.image_embedding_width)
