"""Held-out images of a model's own data set, with their captions."""

import numpy as np
from jaxtyping import UInt8

from glide_jax.config import Config
from glide_jax.data.records import RecordReader
from glide_jax.data.sources import open_source
from glide_jax.data.transforms import load_pixels


def held_out_images(
    config: Config, split: str, n: int, resolution_px: int
) -> tuple[UInt8[np.ndarray, "n h w 3"], list[tuple[str, ...]]]:
    """The first n usable records of a split, or all if there are fewer.

    Args:
        config: of the run.
        split: of its data set; empty for its validation split.
        n: number of records.
        resolution_px: side of the images.

    Returns:
        The images, cropped to the square at the center, and the captions of each.

    Raises:
        UserError: the data set cannot be opened, or too many of its records are broken.
    """
    source = open_source(config.data, split or config.data.validation_split)
    reader = RecordReader(source, config.data.max_bad_fraction)
    images: list[np.ndarray] = []
    captions: list[tuple[str, ...]] = []
    for index in range(len(source)):
        if len(images) == n:
            break
        found = reader.attempt(
            index, lambda r: (load_pixels(r.image, resolution_px, name=r.name), r.captions)
        )
        if found is not None:
            images.append(found[0])
            captions.append(tuple(found[1]))
    if not images:
        raise reader.nothing_usable()
    return np.stack(images), captions
