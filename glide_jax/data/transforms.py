"""From an encoded image to the square that the model sees: decode, crop, resize, mirror.

Images stay 8-bit until they are batched: four times less memory to move, and one conversion a
batch instead of one an image.
"""

import io
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from glide_jax.data.records import BadRecordError


def load_pixels(
    encoded: bytes,
    resolution_px: int,
    rng: np.random.Generator | None = None,
    *,
    crop: Literal["center", "random"] = "center",
    horizontal_flip: bool = False,
    name: str = "image",
) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image and makes it `resolution_px` square.

    Turned upright as its EXIF orientation says; transparency becomes white; the largest square,
    from the middle or from anywhere, is resampled with Pillow's antialiasing bicubic filter.

    Args:
        encoded: a file of any format and color mode Pillow reads.
        resolution_px: side of the result.
        rng: needed by a random crop and by the flip.
        crop: which square: the middle one, or a random one.
        horizontal_flip: mirror with probability 1/2.
        name: of the record, for the message.

    Raises:
        BadRecordError: not an image, or a truncated one.
    """
    place, mirrored = 0.5, False
    if crop == "random":
        place = _needed(rng).random()
    if horizontal_flip:
        mirrored = _needed(rng).random() < 0.5
    # Pillow's decoders answer malformed files with nearly any exception there is (OSError,
    # SyntaxError, ValueError, struct.error, ...), and all of them mean the same here.
    try:
        image = decode(encoded, 2 * resolution_px)
    except Image.UnidentifiedImageError:
        what = "not an image that Pillow can read" if encoded else "the file is empty"
        raise BadRecordError(f"{name}: {what}") from None
    except Exception as error:
        raise BadRecordError(f"{name}: cannot decode the image ({error})") from error
    side = min(image.size)
    left, top = ((length - side) * place for length in image.size)
    square = image.resize(
        (resolution_px, resolution_px),
        Image.Resampling.BICUBIC,
        box=(left, top, left + side, top + side),
    )
    pixels = np.asarray(square)
    return pixels[:, ::-1] if mirrored else pixels


def to_float(pixels: UInt8[np.ndarray, "*b h w 3"]) -> Float32[np.ndarray, "*b h w 3"]:
    """8-bit levels 0..255 to [-1, 1]."""
    image = pixels.astype(np.float32)
    image /= 127.5
    image -= 1
    return image


def _needed(rng: np.random.Generator | None) -> np.random.Generator:
    if rng is None:
        raise ValueError("a random crop or flip needs rng")
    return rng


def decode(encoded: bytes, min_px: int | None = None) -> Image.Image:
    """An upright RGB image, transparency made white; of an animation, the first frame.

    Args:
        encoded: a file of any format and color mode Pillow reads.
        min_px: a smaller version will do, with sides no shorter than this unless the file's are.

    Raises:
        Exception: of nearly any kind, Pillow's decoders being what they are.
    """
    image: Image.Image = Image.open(io.BytesIO(encoded))
    if min_px is not None:
        # JPEG decodes to a half, quarter or eighth at a fraction of the cost, by averaging blocks.
        # The bicubic filter still halves what remains, so aliasing does not show.
        image.draft(None, (min_px, min_px))
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip instead of scale
        levels = np.asarray(image).astype(np.int64)
        image = Image.fromarray((levels.clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")
