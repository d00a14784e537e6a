"""Low-resolution images against NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from glide_jax.training.low_res import area_average, gaussian_blur

IMAGE = np.random.default_rng(0).uniform(-1, 1, (3, 12, 8, 3)).astype(np.float32)
blur = jax.jit(gaussian_blur)


@pytest.mark.parametrize("size_px", [1, 2, 4])
def test_area_average_is_the_mean_of_blocks(size_px):
    out = jax.jit(area_average, static_argnums=1)(jnp.asarray(IMAGE), size_px)
    rows, columns = np.array_split(range(12), size_px), np.array_split(range(8), size_px)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            expected = IMAGE[:, row][:, :, column].mean((1, 2))
            np.testing.assert_allclose(out[:, i, j], expected, atol=1e-6)


def test_area_average_to_the_same_size_is_the_identity():
    image = jnp.asarray(IMAGE[:, :8])
    np.testing.assert_array_equal(area_average(image, 8), image)


@settings(max_examples=25)
@given(st.lists(st.floats(0.05, 5), min_size=3, max_size=3))
def test_blur_is_a_gaussian_of_three_pixels(sigma):
    out = blur(jnp.asarray(IMAGE), jnp.asarray(sigma, jnp.float32))
    for image, s, blurred in zip(IMAGE, sigma, out, strict=True):
        expected = gaussian_filter(image, s, mode="nearest", radius=1, axes=(0, 1))
        np.testing.assert_allclose(blurred, expected, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.0, 1e-30, 0.02])
def test_blur_with_a_tiny_sigma_is_the_identity(sigma):
    """Also where sigma^2, or the weight of the neighbors, underflows in float32."""
    out = blur(jnp.asarray(IMAGE), jnp.array([0, sigma, 0.6]))
    np.testing.assert_array_equal(out[:2], IMAGE[:2])
    assert np.isfinite(out).all() and (out[2] != IMAGE[2]).any()


@given(st.floats(-1, 1, width=32, allow_subnormal=False), st.floats(0, 10))  # XLA flushes them
def test_blur_keeps_constant_images(level, sigma):
    image = jnp.full((1, 5, 4, 3), level, jnp.float32)
    np.testing.assert_array_equal(blur(image, jnp.full(1, sigma, jnp.float32)), image)


def test_blur_keeps_the_mean_away_from_the_border():
    image = np.zeros((1, 9, 9, 3), np.float32)
    image[:, 4, 4] = 1
    out = np.asarray(blur(jnp.asarray(image), jnp.array([0.6])))
    np.testing.assert_allclose(out.sum((1, 2)), 1, rtol=1e-6)
    assert (out[:, 3:6, 3:6] > 0).all() and (out > 0).sum() == 27
