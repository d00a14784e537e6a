"""The result of sampling, read as an array."""

import numpy as np

from glide_jax.config import SampleConfig
from glide_jax.sampling.samples import Samples

IMAGES = np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3)
SAMPLES = Samples(IMAGES, ["a", "b", "c"], [0, 1, 2], SampleConfig())


def test_samples_are_read_as_the_array_of_their_images():
    assert (SAMPLES.shape, SAMPLES.ndim, SAMPLES.dtype) == ((3, 2, 2, 3), 4, np.uint8)
    assert len(SAMPLES) == 3
    np.testing.assert_array_equal(SAMPLES[1], IMAGES[1])
    np.testing.assert_array_equal(SAMPLES[1:], IMAGES[1:])
    np.testing.assert_array_equal(np.stack(list(SAMPLES)), IMAGES)
    np.testing.assert_array_equal(np.asarray(SAMPLES), IMAGES)
    assert np.asarray(SAMPLES, np.float32).dtype == np.float32
    np.testing.assert_array_equal(np.mean(SAMPLES, axis=0), IMAGES.mean(0))
