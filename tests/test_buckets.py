"""Batch sizes for a number of images."""

import pytest

from glide_jax.sampling.buckets import bucket


def test_buckets_are_few_and_waste_less_than_a_third():
    sizes = [bucket(images) for images in range(1, 49)]
    assert sorted(set(sizes)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48]
    for images, size in enumerate(sizes, start=1):
        assert images <= size < 1.5 * images


@pytest.mark.parametrize(
    ("images", "size"), [(1, 1), (2, 8), (8, 8), (9, 16), (33, 48), (128, 128)]
)
def test_devices_share_a_bucket(images, size):
    assert bucket(images, devices=8) == size
