"""Examples of a batch: a record's image and one of its captions, prepared for a model."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from glide_jax.config import ClipConfig, Config, ModelConfig, PriorConfig
from glide_jax.data.distinct import Choice, Place
from glide_jax.data.masks import random_mask, with_place
from glide_jax.data.records import Record, RecordReader
from glide_jax.data.transforms import load_pixels
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
        pixels = load_pixels(
            record.image,
            model.resolution_px,
            rng,
            crop=data.crop,
            horizontal_flip=data.horizontal_flip,
            name=record.name,
        )
        example = masked(random_crop(pixels, self._config, rng), caption, self._config, rng)
        return example._replace(embedding=record.embedding)


def needs_no_pixels(config: Config, record: Record) -> bool:
    """Whether a model learns from a record's embedding alone: a prior."""
    return isinstance(config.model, PriorConfig) and record.embedding is not None


def random_crop(
    pixels: UInt8[np.ndarray, "h w 3"], config: Config, rng: np.random.Generator
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A random crop of data.low_res.crop_px, or the full image if that is 0."""
    px = config.data.low_res.crop_px
    if not px:
        return pixels
    y, x = rng.integers(0, len(pixels) - px + 1, 2)
    return pixels[y : y + px, x : x + px]


def masked(
    pixels: UInt8[np.ndarray, "h w 3"], caption: str, config: Config, rng: np.random.Generator
) -> Example:
    """An example, with a random mask for an inpainting model."""
    if not (isinstance(config.model, ModelConfig) and config.model.inpaint):
        return Example(pixels, caption, None)
    mask = random_mask(rng, len(pixels), config.data.masks)
    if rng.random() < config.data.masks.caption_location:
        caption = with_place(caption, mask)
    return Example(pixels, caption, mask)
