"""Low-resolution training images of upsamplers: downsampling and blur."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from glide_jax.shapes import Image


def area_average(image: Image, size_px: int) -> Float[Array, "b {size_px} {size_px} 3"]:
    """Downsample by the mean of equal blocks of pixels, as ADM's upsamplers (arXiv 2105.05233).

    Args:
        image: (b, h, w, 3).
        size_px: side of the result; divides h and w.
    """
    b, h, w, c = image.shape
    blocks = image.reshape(b, size_px, h // size_px, size_px, w // size_px, c)
    # (b, size_px, block h, size_px, block w, c)
    return blocks.mean((2, 4))


def gaussian_blur(image: Image, sigma: Float[Array, "b"]) -> Image:
    """Blur each image with its own 3x3 Gaussian kernel.

    As unCLIP (app. C, arXiv 2204.06125), with border pixels repeated.

    Args:
        image: (b, h, w, 3).
        sigma: standard deviation in pixels; 0 keeps an image bit for bit.
    """
    neighbor = jnp.exp(-0.5 / jnp.square(sigma))  # (b,), relative to the center
    weight = (neighbor / (1 + 2 * neighbor))[:, None, None, None]
    for axis in (1, 2):
        image += weight * _second_difference(image, axis)
    return image


def _second_difference(image: Image, axis: int) -> Image:
    """Sum of both neighbors minus twice the pixel: exactly 0 in constant regions."""
    padding = [(1, 1) if i == axis else (0, 0) for i in range(4)]
    padded = jnp.pad(image, padding, mode="edge")
    length = image.shape[axis]
    before = jax.lax.slice_in_dim(padded, 0, length, axis=axis)
    after = jax.lax.slice_in_dim(padded, 2, length + 2, axis=axis)
    return before + after - 2 * image
