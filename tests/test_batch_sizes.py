import dataclasses

import pytest
from helpers import model_set, tiny
from helpers.unread_source import UnreadSource

from glide_jax.data.mixture import MixtureSource
from glide_jax.errors import UserError
from glide_jax.training.batch_sizes import require_distinct_images, with_validation_batch
from glide_jax.training.build import require_startable


def with_batches(config=None, **changes):
    config = config or model_set.clip_config()
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def test_a_validation_batch_fits_the_devices_and_the_held_out_images():
    assert (
        with_validation_batch(
            with_batches(batch_examples=64, validation_examples=100), 50
        ).train.batch_examples
        == 48
    )
    enough = with_batches(batch_examples=8, validation_examples=100)
    assert with_validation_batch(enough, 50) == enough


@pytest.mark.parametrize(("examples", "held_out"), [(7, 100), (100, 7)])
def test_validation_with_too_few_images_is_refused(examples, held_out):
    config = with_batches(batch_examples=8, validation_examples=examples)
    with pytest.raises(UserError, match="needs at least 8 held-out images"):
        with_validation_batch(config, held_out)


@pytest.mark.parametrize(
    ("batch_examples", "micro_batches", "images", "expected"),
    [
        (2048, 1, 512, 512),  # base64: not four times the same images
        (256, 1, 500, 248),  # twice
        (32, 2, 50, 16),  # three times 16, with two micro-batches on eight devices
        (64, 1, 264, 64),  # four times: 24 would leave out none, but takes eleven batches
        (8, 1, 5, 8),  # too few for eight devices
    ],
)
def test_a_validation_batch_leaves_out_few_images(batch_examples, micro_batches, images, expected):
    config = with_batches(
        tiny.get_config(),
        batch_examples=batch_examples,
        micro_batches=micro_batches,
        validation_examples=512,
    )
    assert with_validation_batch(config, images).train.batch_examples == expected


def test_each_part_of_a_mixture_has_enough_images_for_a_batch_of_a_clip():
    mixture = MixtureSource([UnreadSource(30), UnreadSource(7)], [3.0, 1.0])
    require_distinct_images(with_batches(batch_examples=28), mixture)
    with pytest.raises(UserError, match=r"\(32\) takes 8 images from part 2 .* which has 7"):
        require_distinct_images(with_batches(batch_examples=32), mixture)
    require_distinct_images(with_batches(batch_examples=8), UnreadSource(8))
    with pytest.raises(UserError, match=r"\(16\) must be at most the number of images \(8\)"):
        require_distinct_images(with_batches(batch_examples=16), UnreadSource(8))


def test_a_clip_of_openai_is_not_trained():
    config = model_set.clip_config()
    openai = dataclasses.replace(config.clip, architecture="openai", steps=1)
    with pytest.raises(UserError, match=r"is not trained here: give --model.architecture glide"):
        require_startable(dataclasses.replace(config, model=openai), UnreadSource(99), 9)
