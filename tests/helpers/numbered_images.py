"""Images that encode their number, to identify them in a batch."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, count: int) -> Path:
    """Writes 00.png, 01.png, ...: image i has all pixels at level i and the caption "number i"."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (12, 10), (number, number, number)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"number {number}\n")
    return folder


def numbers(images: np.ndarray) -> list[int]:
    """The numbers of the images in a batch."""
    assert images.dtype == np.uint8 and not np.ptp(images, axis=(1, 2, 3)).any()
    return images[:, 0, 0, 0].tolist()
