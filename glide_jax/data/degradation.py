"""Degraded low-resolution images for training upsamplers, on the host.

`bsr` is the degradation of blind super-resolution (BSRGAN, arXiv 2103.14006) with which unCLIP
trains its 256 to 1024 px upsampler (app. C, arXiv 2204.06125): blurs, resizes, noise and JPEG
artifacts in random order. The upsampler learns to remove such defects of its input. Strengths are
those of the light variant of latent diffusion (arXiv 2112.10752); unCLIP publishes none. All
downscaling is antialiased.
"""

import io
import math
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from glide_jax.images import open_image

Levels = UInt8[np.ndarray, "_ _ 3"]

FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.BOX)
HALVED_FIRST = 0.25
"""Probability of halving a large image before everything else."""
RANDOM_SIZE = 0.8
"""Probability of a resize to a random size in between; else the image is blurred and subsampled."""
EXTRA_JPEG = 0.9
"""Probability of a JPEG in between, beside the last."""
JPEG_QUALITY = 80, 95
NOISE_STD = 1, 2
"""In levels."""


def bsr(pixels: Levels, size_px: int, rng: np.random.Generator) -> Levels:
    """Degrades an image and downsamples it.

    In random order: a Gaussian blur, isotropic or not; a resize to a random size, then to the
    final one; noise, of each channel, gray or correlated; JPEG. JPEG is last in any case.

    Args:
        pixels: a square of at least `size_px`.
        size_px: side of the result.
        rng: all random numbers.
    """
    factor = len(pixels) / size_px
    if factor >= 4 and rng.random() < HALVED_FIRST:
        pixels, factor = _resize(pixels, len(pixels) // 2, rng), factor / 2
    steps = rng.permutation(["blur", "size", "size", "noise", "jpeg"])
    sizes = [lambda x: _random_size(x, factor, rng), lambda x: _resize(x, size_px, rng)]
    for step in steps:
        if step == "blur":
            pixels = _blur(pixels, _covariance(factor, rng))
        elif step == "size":
            pixels = sizes.pop(0)(pixels)
        elif step == "noise":
            pixels = _add_noise(pixels, rng)
        elif rng.random() < EXTRA_JPEG:
            pixels = _jpeg(pixels, rng)
    return _jpeg(pixels, rng)


def _resize(pixels: Levels, px: int, rng: np.random.Generator) -> Levels:
    chosen = FILTERS[rng.integers(len(FILTERS))]
    return np.asarray(Image.fromarray(pixels).resize((px, px), chosen))


def _random_size(pixels: Levels, factor: float, rng: np.random.Generator) -> Levels:
    """Downscales by up to twice `factor`, or by `factor` without antialiasing after a blur."""
    if rng.random() < RANDOM_SIZE:
        return _resize(pixels, max(1, round(len(pixels) / rng.uniform(1, 2 * factor))), rng)
    variance = rng.uniform(0.1, 0.6 * factor) ** 2
    stride = min(max(1, round(factor)), len(pixels))
    px = len(pixels) // stride * stride
    x: Any = _blur(pixels, np.eye(2) * variance)[:px, :px].astype(np.float32)
    # At the centers of blocks, between two pixels if the stride is even: else the image would move.
    for axis in (0, 1):
        x = np.moveaxis(x, axis, 0)
        x = np.moveaxis((x[(stride - 1) // 2 :: stride] + x[stride // 2 :: stride]) / 2, 0, axis)
    return _levels(x)


def _covariance(factor: float, rng: np.random.Generator) -> Float[np.ndarray, "2 2"]:
    """Of a random Gaussian kernel, in pixels: half of them isotropic."""
    if rng.random() < 0.5:
        return np.eye(2) * ((2 + factor) / 4 * rng.random()) ** 2
    angle = math.pi * rng.random()
    axes = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return axes * ((4 + factor) / 4 * rng.random(2)) @ axes.T


def _blur(pixels: Levels, covariance: Float[np.ndarray, "2 2"]) -> Levels:
    """Convolves with a Gaussian, whose Fourier transform is exp(-w' covariance w / 2).

    Borders are mirrored, at the width of three standard deviations.
    """
    h, w, _ = pixels.shape
    margin = min(math.ceil(3 * math.sqrt(covariance.diagonal().max())), h - 1, w - 1)
    x = np.pad(pixels.astype(np.float32), ((margin, margin), (margin, margin), (0, 0)), "reflect")
    rows = 2 * np.pi * np.fft.fftfreq(x.shape[0])[:, None]
    columns = 2 * np.pi * np.fft.rfftfreq(x.shape[1])
    (yy, xy), (_, xx) = covariance
    gain = np.exp(-(yy * rows**2 + 2 * xy * rows * columns + xx * columns**2) / 2)
    spectrum = np.fft.rfft2(x, axes=(0, 1)) * gain[..., None]
    blurred = np.fft.irfft2(spectrum, x.shape[:2], axes=(0, 1))
    return _levels(blurred[margin : margin + h, margin : margin + w])


def _add_noise(pixels: Levels, rng: np.random.Generator) -> Levels:
    """Adds noise: 40% of each channel alone, 40% gray, 20% correlated between channels."""
    std = rng.uniform(*NOISE_STD)
    kind = rng.random()
    noise = rng.standard_normal((*pixels.shape[:2], 1 if kind < 0.4 else 3))
    if kind >= 0.8:
        noise = noise @ rng.dirichlet(np.ones(3), 3).T
    return _levels(pixels + std * noise)


def _jpeg(pixels: Levels, rng: np.random.Generator) -> Levels:
    buffer = io.BytesIO()
    low, high = JPEG_QUALITY
    quality = int(rng.integers(low, high + 1))
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(open_image(buffer.getvalue()))


def _levels(x: Float[np.ndarray, "_ _ 3"]) -> Levels:
    return np.clip(np.round(x), 0, 255).astype(np.uint8)
