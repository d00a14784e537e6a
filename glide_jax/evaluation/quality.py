"""PSNR, SSIM and LPIPS of images against references of the same content, of all or some pixels."""

import numpy as np
from jaxtyping import Float

from glide_jax.evaluation.metrics.image_quality import WINDOW_PX, Images, Kept, psnr, ssim
from glide_jax.evaluation.perceptual import PerceptualDistance


def image_quality(
    images: Images,
    reference: Images,
    distance: PerceptualDistance | None = None,
    kept: Kept | None = None,
) -> dict[str, Float[np.ndarray, "n"]]:
    """PSNR in dB, SSIM and, with a distance, LPIPS of each image, by title.

    Images smaller than SSIM's windows have no SSIM. See `defined` for images without kept pixels.

    Args:
        images, reference: row i of both are compared.
        distance: of LPIPS.
        kept: the pixels that count; all unless given. For LPIPS, which looks at all pixels, the
            others are replaced by the reference's.

    Raises:
        UserError: LPIPS is not defined for images of this size.
    """
    found = {"PSNR": psnr(images, reference, kept)}
    if min(images.shape[1:3]) >= WINDOW_PX:
        found["SSIM"] = ssim(images, reference, kept)
    if distance is not None:
        compared = images if kept is None else np.where(kept, images, reference)
        found[f"LPIPS ({distance.title})"] = distance(compared, reference)
    return found


def defined(
    quality: dict[str, Float[np.ndarray, "n"]],
) -> dict[str, Float[np.ndarray, "m"]]:
    """The values of images that have one, by title; nothing for a title without any.

    An image without kept pixels has no value, and without a window of them no SSIM.
    """
    numbers = {title: values[~np.isnan(values)] for title, values in quality.items()}
    return {title: values for title, values in numbers.items() if len(values)}
