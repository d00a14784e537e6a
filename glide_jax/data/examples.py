"""Examples of a batch: a record's image and one of its captions, prepared for a model."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from glide_jax.config import ClipConfig, Config, ModelConfig, PriorConfig
from glide_jax.data.degradation import bsr
from glide_jax.data.distinct import Choice, Place
from glide_jax.data.masks import random_mask, with_place
from glide_jax.data.records import Record, RecordReader
from glide_jax.data.transforms import load_sizes
from glide_jax.errors import UserError

NO_PIXELS = np.zeros((0, 0, 3), np.uint8)


class Example(NamedTuple):
    """One example of a batch."""

    pixels: UInt8[np.ndarray, "h w 3"]
    """Empty for a prior that learns from embeddings."""
    caption: str
    """One of the record's captions, or empty if dropped."""
    mask: Bool[np.ndarray, "h w 1"] | None
    """Inpainting only: True for known pixels."""
    embedding: Float32[np.ndarray, "d"] | None = None
    """The record's image embedding, if it has one."""
    clip_pixels: UInt8[np.ndarray, "h3 w3 3"] | None = None
    """unCLIP's decoder only: the same image at the CLIP's resolution, if that is another."""
    low_res: UInt8[np.ndarray, "h2 w2 3"] | None = None
    """Upsamplers with data.low_res.degradation only: the degraded low-resolution image."""


class ExampleReader:
    """Reads training examples. It can be pickled, for worker processes.

    Args:
        config: of the run.
        readers: of the parts of the source.
    """

    def __init__(self, config: Config, readers: Sequence[RecordReader]) -> None:
        self._config = config
        self._readers = readers

    def read(self, place: Place, rng: np.random.Generator) -> Example:
        """The example at a place, or at the next one that is not broken."""
        part, index = place
        return self._readers[part].read(index, partial(self._prepare, rng))

    def read_distinct(self, choice: Choice, rng: np.random.Generator) -> Example:
        """The example at the first of the places whose record is not broken."""
        for part, index in choice.places():
            example = self._readers[part].attempt(index, partial(self._prepare, rng))
            if example is not None:
                return example
        raise UserError(
            "a record cannot be used, and no image remains to replace it in a CLIP's batch: repair "
            "or remove it, or reduce train.batch_examples"
        )

    def _prepare(self, rng: np.random.Generator, record: Record) -> Example:
        data, model = self._config.data, self._config.model
        caption = record.captions[rng.integers(len(record.captions))]
        if rng.random() < data.caption_dropout and not isinstance(model, ClipConfig):
            caption = ""
        if needs_no_pixels(self._config, record):
            return Example(NO_PIXELS, caption, None, record.embedding)
        pixels, *of_clip = load_sizes(
            record.image,
            sizes_px(self._config),
            rng,
            crop=data.crop,
            horizontal_flip=data.horizontal_flip,
            name=record.name,
        )
        pixels = random_crop(pixels, self._config, rng)
        return finished(pixels, of_clip, caption, record, self._config, rng)


def needs_no_pixels(config: Config, record: Record) -> bool:
    """Whether a model learns from a record's embedding alone: a prior."""
    return isinstance(config.model, PriorConfig) and record.embedding is not None


def sizes_px(config: Config) -> list[int]:
    """Resolutions in which an image is read: the model's, then the CLIP's if that is another."""
    clip_px = config.train.clip_px
    return [config.model.resolution_px, *([clip_px] if clip_px else [])]


def random_crop(
    pixels: UInt8[np.ndarray, "h w 3"], config: Config, rng: np.random.Generator
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A random crop of data.low_res.crop_px, or the full image if that is 0."""
    px = config.data.low_res.crop_px
    if not px:
        return pixels
    y, x = rng.integers(0, len(pixels) - px + 1, 2)
    return pixels[y : y + px, x : x + px]


def finished(
    pixels: UInt8[np.ndarray, "h w 3"],
    of_clip: Sequence[UInt8[np.ndarray, "h3 w3 3"]],
    caption: str,
    record: Record,
    config: Config,
    rng: np.random.Generator,
) -> Example:
    """An example, with what its model is given of the image beside the pixels.

    Args:
        pixels: the image or a crop of it.
        of_clip: the image for the CLIP, if it is another.
        caption: one of the record's, or empty.
        record: of the image.
        config: of the run.
        rng: of masks and degradations.
    """
    clip_pixels = of_clip[0] if of_clip else None
    example = Example(pixels, caption, None, record.embedding, clip_pixels)
    model, data = config.model, config.data
    if not isinstance(model, ModelConfig):
        return example
    if data.low_res.degradation == "bsr":
        low_res = bsr(pixels, len(pixels) // model.upscale_factor, rng)
        example = example._replace(low_res=low_res)
    if not model.inpaint:
        return example
    mask = random_mask(rng, len(pixels), data.masks)
    if rng.random() < data.masks.caption_location:
        caption = with_place(caption, mask)
    return example._replace(mask=mask, caption=caption)
