"""Batch sizes of a CLIP: an image that occurs twice in a batch is its own negative pair."""

from dataclasses import replace

import jax

from glide_jax.config import Config
from glide_jax.errors import UserError


def require_distinct_images(config: Config, images: int) -> None:
    """Raises UserError if a CLIP's batch is larger than its data set of `images` images."""
    batch = config.train.batch_examples
    if batch > images:
        raise UserError(
            f"train.batch_examples ({batch}) must be at most the number of images ({images}): an "
            "image must not occur twice in a CLIP's batch"
        )


def with_validation_batch(config: Config, held_out: int) -> Config:
    """The configuration with a batch size at which no held-out image occurs twice in a batch.

    Args:
        config: of the run.
        held_out: images in the validation split.

    Raises:
        UserError: there are fewer images than devices and micro-batches need.
    """
    settings = config.train
    multiple = jax.device_count() * settings.micro_batches
    examples = min(settings.validation_examples, held_out) // multiple * multiple
    if not examples:
        raise UserError(
            f"validating a CLIP needs at least {multiple} held-out images: increase "
            "--train.validation-examples or the validation split, or give "
            "--train.validate-every-steps 0"
        )
    batch = min(settings.batch_examples, examples)
    return replace(config, train=replace(settings, batch_examples=batch))
