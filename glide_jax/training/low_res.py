"""The smaller images that an upsampler is trained on: made of the large ones, then made worse."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from glide_jax.shapes import Image


def area_average(image: Image, size_px: int) -> Float[Array, "b {size_px} {size_px} 3"]:
    """The means of equal blocks of pixels, as ADM's upsamplers see them (arXiv 2105.05233).

    Args:
        image: (b, h, w, 3).
        size_px: divides h and w.
    """
    b, h, w, c = image.shape
    blocks = image.reshape(b, size_px, h // size_px, size_px, w // size_px, c)
    return blocks.mean((2, 4))


def gaussian_blur(image: Image, sigma: Float[Array, "b"]) -> Image:
    """Blurs with a Gaussian kernel of 3x3 pixels, each image with its own.

    unCLIP's (app. C, arXiv 2204.06125), but that beyond the border the outermost pixels go on.

    Args:
        image: (b, h, w, 3).
        sigma: standard deviation in pixels; 0 leaves an image as it is, bit for bit.
    """
    neighbor = jnp.exp(-0.5 / jnp.square(sigma))
    share = (neighbor / (1 + 2 * neighbor))[:, None, None, None]
    for axis in (1, 2):
        image += share * _second_difference(image, axis)
    return image


def _second_difference(image: Image, axis: int) -> Image:
    """The neighbors' sum less twice the pixel: 0 where an image is flat, however rounded."""
    padding = [(1, 1) if i == axis else (0, 0) for i in range(4)]
    padded = jnp.pad(image, padding, mode="edge")
    length = image.shape[axis]
    before = jax.lax.slice_in_dim(padded, 0, length, axis=axis)
    after = jax.lax.slice_in_dim(padded, 2, length + 2, axis=axis)
    return before + after - 2 * image
