import dataclasses

import pytest
from helpers import model_set

from glide_jax.errors import UserError
from glide_jax.training.contrastive_batches import with_validation_batch


def with_batches(**changes):
    config = model_set.clip_config()
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
