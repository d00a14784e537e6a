"""Resizing of images to a feature network's input: the choices that make numbers incomparable.

A `Resize` squeezes images of any size to squares. The linear ones are a matrix for each axis, made
on the host; the device multiplies whole batches by them. `Preprocessing` adds the range.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

from glide_jax.evaluation.crops import squeeze, torchvision_center_crop

Weights = Callable[[int, int], Float[np.ndarray, "resized length"]]
"""`(length, resized) -> weights`: contribution of each of `length` pixels to each resized one."""


@dataclass(frozen=True)
class Resize:
    """A way to resize images to squares.

    Args:
        weights: of a linear resizing; None if `on_host` does it all.
        on_host: applied to each image first: `(image, side_px) -> image`.
        clip: whether levels are clipped to 0..255 afterwards.
    """

    weights: Weights | None = None
    on_host: Callable[[UInt8[np.ndarray, "h w 3"], int], np.ndarray] | None = None
    clip: bool = False


@dataclass(frozen=True)
class Preprocessing:
    """A network's input: `(resized levels - mean) / std`.

    Args:
        resize: to the network's side.
        mean: of levels 0..255, one number or one for each channel.
        std: likewise.
    """

    resize: Resize
    mean: float | tuple[float, float, float]
    std: float | tuple[float, float, float]


def _tf1(length: int, resized: int) -> Float[np.ndarray, "resized length"]:
    """Bilinear between pixels at i * length / resized: without half-pixel centers."""
    step = np.float32(length) / np.float32(resized)
    return _hat(np.arange(resized, dtype=np.float32) * step, length)


def _torch(length: int, resized: int) -> Float[np.ndarray, "resized length"]:
    """Bilinear at half-pixel centers, not antialiased."""
    step = np.float32(length) / np.float32(resized)
    at = (np.arange(resized, dtype=np.float32) + np.float32(0.5)) * step - np.float32(0.5)
    return _hat(np.maximum(at, 0), length)


def _hat(at: Float32[np.ndarray, "resized"], length: int) -> Float[np.ndarray, "resized length"]:
    """Weights of the pixels before and after each place, float32 places as the originals have."""
    low = np.floor(at).astype(int)
    fraction = (at - low).astype(np.float64)
    rows, weights = np.arange(len(at)), np.zeros((len(at), length))
    np.add.at(weights, (rows, np.minimum(low, length - 1)), 1 - fraction)
    np.add.at(weights, (rows, np.minimum(low + 1, length - 1)), fraction)
    return weights


def _cubic(length: int, resized: int) -> Float[np.ndarray, "resized length"]:
    """Antialiased bicubic (a = -0.5) at half-pixel centers, as in Pillow."""
    step = length / resized
    width = max(step, 1.0)
    center = (np.arange(resized)[:, None] + 0.5) * step
    pixels = np.arange(length)
    first, last = np.trunc(center - 2 * width + 0.5), np.trunc(center + 2 * width + 0.5)
    x = np.abs(pixels + 0.5 - center) / width
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    kernel = np.where(x < 1, near, np.where(x < 2, far, 0))
    kernel = np.where((pixels >= np.maximum(first, 0)) & (pixels < last), kernel, 0)
    return kernel / kernel.sum(1, keepdims=True)


TF1 = Resize(_tf1)
"""tf.image.resize_bilinear of TensorFlow 1: guided-diffusion, TTUR, torch-fidelity, NVIDIA's."""
TORCH = Resize(_torch)
"""torch.nn.functional.interpolate(mode="bilinear"): pytorch-fid, dgm-eval."""
CLEAN = Resize(_cubic, clip=True)
"""Pillow's bicubic filter, antialiased and not rounded: clean-fid (arXiv 2104.11222)."""


CLIP = Resize(on_host=torchvision_center_crop)
"""OpenAI CLIP's: the short side by Pillow's bicubic filter, then the central square."""
PIL = Resize(on_host=squeeze)
"""Pillow's bicubic filter, rounded: DINOv2's features in dgm-eval and EDM2's `pil`."""
EDM2 = Resize(_cubic)
"""PyTorch's antialiased bicubic filter, neither rounded nor clipped: EDM2's default for DINOv2."""


@lru_cache(64)
def axis_weights(
    weights: Weights, length: int, resized: int, padded: int
) -> Float32[np.ndarray, "resized padded"]:
    """`weights(length, resized)` for an axis with margins: zero for pixels from `length` on."""
    return np.pad(weights(length, resized).astype(np.float32), ((0, 0), (0, padded - length)))


def resize_squares(
    x: Float32[Array, "b h w 3"],
    rows: Float32[Array, "k side h"],
    columns: Float32[Array, "k side w"],
) -> Float32[Array, "b side side 3"]:
    """Multiplies both axes of images by weights, on the device.

    Args:
        x: levels.
        rows, columns: weights of the axes: of all images (k = 1) or of each (k = b).
    """
    b, h, w, c = x.shape
    x = jnp.matmul(rows, x.reshape(b, h, w * c), precision="highest")  # b side (w c)
    side = x.shape[1]
    x = x.reshape(b, side, w, c).swapaxes(1, 2).reshape(b, w, side * c)
    x = jnp.matmul(columns, x, precision="highest")  # b side2 (side c)
    return x.reshape(b, side, side, c).swapaxes(1, 2)


@partial(jax.jit, static_argnums=3)
def network_input(
    images: UInt8[Array, "b h w 3"] | Float32[Array, "b side side 3"],
    rows: Float32[Array, "k side h"] | None,
    columns: Float32[Array, "k side w"] | None,
    preprocessing: Preprocessing,
) -> Float32[Array, "b side side 3"]:
    """Resizes and normalizes images, on the device.

    Args:
        images: 8-bit levels, or levels that `on_host` has resized.
        rows, columns: as for `resize_squares`; None if the images have the network's size.
        preprocessing: of the network.
    """
    x = images.astype(jnp.float32)
    if rows is not None and columns is not None:
        x = resize_squares(x, rows, columns)
    if preprocessing.resize.clip:
        x = jnp.clip(x, 0, 255)
    return (x - jnp.asarray(preprocessing.mean)) / jnp.asarray(preprocessing.std)
