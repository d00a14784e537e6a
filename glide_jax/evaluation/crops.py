"""Images of any size to squares of 8-bit levels, by the rules that papers name.

The rule changes a Frechet distance by more than most models differ: report it with the number.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Square = UInt8[np.ndarray, "px px 3"]
Crop = Callable[[UInt8[np.ndarray, "h w 3"], int], Square]
"""`(image, px) -> square` of that side."""


def adm_center_crop(image: UInt8[np.ndarray, "h w 3"], px: int) -> Square:
    """guided-diffusion's center_crop_arr, EDM2's center-crop-dhariwal.

    Halves the image with a box filter while its short side is at least twice `px`, resizes the
    short side to `px` with a bicubic filter, and crops the center.
    """
    pil = Image.fromarray(image)
    while min(pil.size) >= 2 * px:
        pil = pil.resize((pil.width // 2, pil.height // 2), Image.Resampling.BOX)
    scale = px / min(pil.size)
    size = (round(pil.width * scale), round(pil.height * scale))
    found = np.asarray(pil.resize(size, Image.Resampling.BICUBIC))
    top, left = ((side - px) // 2 for side in found.shape[:2])
    return found[top : top + px, left : left + px]


def edm2_center_crop(image: UInt8[np.ndarray, "h w 3"], px: int) -> Square:
    """EDM2's center-crop: the largest centered square, resized with a Lanczos filter."""
    h, w = image.shape[:2]
    side = min(h, w)
    square = image[(h - side) // 2 : (h + side) // 2, (w - side) // 2 : (w + side) // 2]
    return np.asarray(Image.fromarray(square).resize((px, px), Image.Resampling.LANCZOS))


def torchvision_center_crop(image: UInt8[np.ndarray, "h w 3"], px: int) -> Square:
    """torchvision's Resize(px, bicubic) and CenterCrop(px), also OpenAI CLIP's preprocessing."""
    h, w = image.shape[:2]
    size = (px, int(px * h / w)) if w <= h else (int(px * w / h), px)
    found = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    top, left = (round((side - px) / 2) for side in found.shape[:2])
    return found[top : top + px, left : left + px]


def squeeze(image: UInt8[np.ndarray, "h w 3"], px: int) -> Square:
    """The whole image, squeezed to a square with a bicubic filter."""
    return np.asarray(Image.fromarray(image).resize((px, px), Image.Resampling.BICUBIC))


CROPS: dict[str, Crop] = {
    "adm": adm_center_crop,
    "edm2": edm2_center_crop,
    "torchvision": torchvision_center_crop,
    "squeeze": squeeze,
}
"""By name. GLIDE's paper says "center crop" and no more; "adm" is the same group's code."""
