"""Batch sizes at which no image occurs twice in a batch of a CLIP, nor in validation."""

import math
from dataclasses import replace

import jax

from glide_jax.config import ClipConfig, Config
from glide_jax.data.mixture import MixtureSource
from glide_jax.data.records import Source
from glide_jax.errors import UserError


def require_distinct_images(config: Config, source: Source) -> None:
    """Checks that a CLIP's batch can have different images: they are each other's negatives.

    Args:
        config: of the run.
        source: its training split.

    Raises:
        UserError: a batch is larger than the data set, or than a part of the mixture in proportion.
    """
    batch, why = config.train.batch_examples, "an image must not occur twice in a CLIP's batch"
    if not isinstance(source, MixtureSource):
        if batch > len(source):
            raise UserError(
                f"train.batch_examples ({batch}) must be at most the number of images "
                f"({len(source)}): {why}"
            )
        return
    pairs = zip(source.parts, source.weights, strict=True)
    for number, (part, weight) in enumerate(pairs, start=1):
        share = math.ceil(batch * weight / sum(source.weights))
        if share > len(part):
            raise UserError(
                f"train.batch_examples ({batch}) takes {share} images from part {number} of the "
                f"mixture, which has {len(part)}: reduce it, or the weight of that part; {why}"
            )


def with_validation_batch(config: Config, images: int) -> Config:
    """The configuration with a batch size at which validation repeats no image.

    A CLIP keeps the size of its training batches if there are enough images, so that it chooses
    between as many captions. For other models, the size is the one that leaves out the fewest
    images, from half of the largest size on: small batches are slow. If there are fewer images than
    devices and micro-batches, they are repeated to fill one batch, and counted once.

    Args:
        config: of the run.
        images: held-out images.

    Raises:
        UserError: there are fewer images than the devices and micro-batches of a CLIP need.
    """
    settings = config.train
    is_clip = isinstance(config.model, ClipConfig)
    multiple = jax.device_count() * settings.micro_batches
    count = min(settings.validation_examples, images)
    largest = min(settings.batch_examples, count) // multiple * multiple
    if not largest and is_clip:
        raise UserError(
            f"validating a CLIP needs at least {multiple} held-out images: increase "
            "--train.validation-examples or the validation split, or give "
            "--train.validate-every-steps 0"
        )
    sizes = [b for b in range(multiple, largest + 1, multiple) if 2 * b >= largest]
    batch = largest if is_clip else max(sizes, key=lambda b: (count // b * b, b), default=multiple)
    return replace(config, train=replace(settings, batch_examples=batch))
