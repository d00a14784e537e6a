"""Metrics on pixels."""

import numpy as np
from jaxtyping import Float, UInt8


def psnr(
    images: UInt8[np.ndarray, "n h w 3"], reference: UInt8[np.ndarray, "n h w 3"]
) -> Float[np.ndarray, "n"]:
    """Peak signal-to-noise ratio of each image: 20 log10(255 / root mean square error), in dB.

    Infinite for equal images.
    """
    error = np.square(images.astype(np.float64) - reference).mean((1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / error)


def diversity(images: UInt8[np.ndarray, "n seeds h w 3"]) -> float:
    """Standard deviation over the seeds of a caption's images, in levels of 0..255.

    The root mean square over pixels and the mean over captions. 0: all seeds give one image.
    """
    variance = images.astype(np.float64).var(axis=1, ddof=1).mean(axis=(1, 2, 3))
    return float(np.sqrt(variance).mean())
