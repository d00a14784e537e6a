"""Metrics on pixels, of complete images or of some pixels: the kept ones of inpainting."""

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float, UInt8

Images = UInt8[np.ndarray, "n h w 3"]
Kept = Bool[np.ndarray, "n h w 1"]

WINDOW_PX = 11
"""Side of SSIM's Gaussian windows."""
SIGMA_PX = 1.5
"""Their standard deviation."""


def psnr(images: Images, reference: Images, kept: Kept | None = None) -> Float[np.ndarray, "n"]:
    """Peak signal-to-noise ratio of each image: 20 log10(255 / root mean square error), in dB.

    Infinite for equal pixels.

    Args:
        images, reference: row i of both are compared.
        kept: the pixels that count; all unless given. An image without any is nan.
    """
    squares = np.square(images.astype(np.float64) - reference).mean(3, keepdims=True)
    counted = np.ones(squares.shape, bool) if kept is None else kept
    with np.errstate(divide="ignore", invalid="ignore"):
        error = (squares * counted).sum((1, 2, 3)) / counted.sum((1, 2, 3))
        return 10 * np.log10(255**2 / error)


def ssim(images: Images, reference: Images, kept: Kept | None = None) -> Float[np.ndarray, "n"]:
    """Structural similarity of each image: 1 for equal pixels.

    Eq. 13 of Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity
    (2004), in each color channel, averaged over all windows inside the image. It agrees with
    skimage.metrics.structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=255, channel_axis=-1). The paper
    compares gray images.

    Args:
        images, reference: row i of both are compared.
        kept: only windows whose pixels are all kept count; all unless given. An image without any
            is nan.

    Raises:
        ValueError: the images are smaller than a window.
    """
    if min(images.shape[1:3]) < WINDOW_PX:
        raise ValueError(f"SSIM needs images of at least {WINDOW_PX} px, not {images.shape[1:3]}")
    found = []
    for i, (x, y) in enumerate(zip(images, reference, strict=True)):  # bounds the memory
        similarity = _similarity(x.astype(np.float64), y.astype(np.float64))  # h2 w2
        if kept is not None:
            whole = scipy.ndimage.minimum_filter(kept[i, :, :, 0].astype(np.uint8), WINDOW_PX)
            similarity = similarity[_inside(whole) > 0]
        found.append(similarity.mean() if similarity.size else np.nan)
    return np.array(found)


def _similarity(
    x: Float[np.ndarray, "h w 3"], y: Float[np.ndarray, "h w 3"]
) -> Float[np.ndarray, "h2 w2"]:
    """SSIM of each window inside the image, averaged over the channels."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = _windows(x), _windows(y)
    variances = _windows(x * x) - mean_x**2 + _windows(y * y) - mean_y**2
    covariance = _windows(x * y) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (similarity / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))).mean(2)


def _windows(x: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "h2 w2 c"]:
    """Weighted mean of each window inside the image."""
    return _inside(scipy.ndimage.gaussian_filter(x, SIGMA_PX, axes=(0, 1), radius=WINDOW_PX // 2))


def _inside(x: np.ndarray) -> np.ndarray:
    """Without the centers of windows that reach over the edge."""
    margin = WINDOW_PX // 2
    return x[margin : x.shape[0] - margin, margin : x.shape[1] - margin]


def diversity(images: UInt8[np.ndarray, "n seeds h w 3"]) -> float:
    """Standard deviation over the seeds of a caption's images, in levels of 0..255.

    The root mean square over pixels and the mean over captions. 0: all seeds give one image.
    """
    variance = images.astype(np.float64).var(axis=1, ddof=1).mean(axis=(1, 2, 3))
    return float(np.sqrt(variance).mean())
