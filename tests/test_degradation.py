"""Degraded low-resolution images."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from glide_jax.data import degradation
from glide_jax.data.degradation import bsr


def an_image(px=64):
    """Smooth, with a sharp edge."""
    y, x = np.mgrid[:px, :px] / px
    levels = np.stack([255 * x, 255 * y, np.where(x + y > 1, 220, 30)], -1)
    return levels.astype(np.uint8)


@pytest.mark.parametrize(("px", "size_px"), [(64, 16), (48, 16), (24, 12), (16, 16), (8, 1)])
def test_it_has_the_low_resolution_and_depends_on_the_generator_alone(px, size_px):
    image = an_image(px)
    first, again, other = (bsr(image, size_px, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (size_px, size_px, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert size_px == 1 or (first != other).any()


def test_it_differs_from_plain_downsampling_but_shows_the_same_image():
    image = an_image()
    plain = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BOX))
    errors = [
        np.abs(bsr(image, 16, np.random.default_rng(seed)).astype(float) - plain).mean()
        for seed in range(40)
    ]
    assert min(errors) > 0.5 and max(errors) < 25 and np.std(errors) > 0.5


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("random_size", [0.0, 1.0])
def test_it_does_not_move_the_image(factor, random_size, monkeypatch):
    """A ramp keeps the levels of its blocks' centers; a shift by a pixel is 5 levels."""
    monkeypatch.setattr(degradation, "RANDOM_SIZE", random_size)
    px = 48
    ramp = (5 * np.arange(px, dtype=np.uint8))[:, None, None]
    image = np.concatenate([np.broadcast_to(ramp, (px, px, 1))] * 2 + [np.full((px, px, 1), 9)], 2)
    image = image.astype(np.uint8)
    image[..., 1] = image[..., 1].T
    expected = image.reshape(px // factor, factor, px // factor, factor, 3).mean((1, 3))
    found = [bsr(image, px // factor, np.random.default_rng(seed)) for seed in range(12)]
    error = (np.mean(found, 0) - expected)[3:-3, 3:-3].mean((0, 1))
    assert np.abs(error[:2]).max() < 1.5


def test_the_blur_is_a_gaussian():
    image = an_image(32)
    found = degradation._blur(image, np.diag([1.5**2, 0.8**2]))
    expected = gaussian_filter(image.astype(float), (1.5, 0.8, 0), mode="mirror", truncate=6)
    assert np.abs(found.astype(float) - expected).max() < 1.5
    np.testing.assert_array_equal(degradation._blur(image, np.zeros((2, 2))), image)


def test_noise_has_the_published_strength():
    gray = np.full((64, 64, 3), 128, np.uint8)
    for seed in range(20):
        noise = degradation._add_noise(gray, np.random.default_rng(seed)) - 128.0
        assert 0.3 < noise.std() < 2.3
