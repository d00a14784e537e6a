"""PSNR and SSIM against scikit-image, of complete images and of kept pixels.

golden/evaluation/image_quality.npz has images, its values, and its SSIM around each pixel.
"""

from pathlib import Path

import numpy as np
import pytest

from glide_jax.evaluation.metrics.image_quality import WINDOW_PX, psnr, ssim

GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "evaluation" / "image_quality.npz"))
IMAGES, REFERENCE = GOLDEN["images"], GOLDEN["reference"]
H, W = IMAGES.shape[1:3]


def test_complete_images():
    np.testing.assert_allclose(psnr(IMAGES, REFERENCE), GOLDEN["psnr"], rtol=1e-12)
    np.testing.assert_allclose(ssim(IMAGES, REFERENCE), GOLDEN["ssim"], rtol=1e-10)
    np.testing.assert_allclose(ssim(IMAGES, IMAGES), 1, rtol=1e-12)
    with pytest.raises(ValueError, match=f"SSIM needs images of at least {WINDOW_PX} px"):
        ssim(IMAGES[:, :10], REFERENCE[:, :10])


def test_kept_pixels():
    """Hidden pixels do not count; SSIM is that of windows without any."""
    kept = np.ones((len(IMAGES), H, W, 1), bool)
    for metric in (psnr, ssim):
        np.testing.assert_array_equal(metric(IMAGES, REFERENCE, kept), metric(IMAGES, REFERENCE))
    kept[:, :, :4] = False
    filled = np.where(kept, IMAGES, 255 - IMAGES)
    for metric in (psnr, ssim):
        found = metric(filled, REFERENCE, kept)
        np.testing.assert_array_equal(found, metric(IMAGES, REFERENCE, kept))
        right = (x[:, :, 4:] for x in (IMAGES, REFERENCE))
        np.testing.assert_allclose(found, metric(*right), rtol=1e-12)
    margin = WINDOW_PX // 2
    whole = GOLDEN["ssim_maps"][:, margin : H - margin, 4 + margin : W - margin]
    np.testing.assert_allclose(ssim(IMAGES, REFERENCE, kept), whole.mean((1, 2)), rtol=1e-5)
    kept[0] = False
    for metric in (psnr, ssim):
        assert np.isnan(metric(IMAGES, REFERENCE, kept)).tolist() == [
            not of_image.any() for of_image in kept
        ]
