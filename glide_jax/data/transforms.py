"""Image preprocessing: decode, crop, resize, flip.

Images stay 8-bit until they are batched: a quarter of the memory traffic, and one conversion per
batch instead of one per image.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from glide_jax.data.records import BadRecordError
from glide_jax.images import NOT_AN_IMAGE, open_image, upright

STRIP_PX = 256
"""Rows that are put over white at a time."""


def load_pixels(
    encoded: bytes,
    resolution_px: int,
    rng: np.random.Generator | None = None,
    *,
    crop: Literal["center", "random"] = "center",
    horizontal_flip: bool = False,
    name: str = "image",
) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes, crops and resizes an image to a square of `resolution_px`.

    The EXIF orientation is applied and transparency becomes white. The largest square, from the
    center or a random position, is resized with Pillow's antialiasing bicubic filter.

    Args:
        encoded: a file in one of `glide_jax.images.FORMATS`, of any color mode.
        resolution_px: side of the result.
        rng: required for a random crop and for the flip.
        crop: position of the square.
        horizontal_flip: mirror with probability 1/2.
        name: the record's name, for messages.

    Raises:
        BadRecordError: not an image, or a truncated one.
    """
    place, mirrored = 0.5, False
    if crop == "random":
        place = _required(rng).random()
    if horizontal_flip:
        mirrored = _required(rng).random() < 0.5
    # Pillow's decoders raise many exception types on malformed files (OSError, SyntaxError,
    # ValueError, struct.error, ...).
    try:
        image = decode(encoded, 2 * resolution_px)
    except Image.UnidentifiedImageError:
        reason = NOT_AN_IMAGE if encoded else "the file is empty"
        raise BadRecordError(f"{name}: {reason}") from None
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
    """Converts 8-bit levels 0..255 to [-1, 1]."""
    image = pixels.astype(np.float32)
    image /= 127.5
    image -= 1
    return image


def _required(rng: np.random.Generator | None) -> np.random.Generator:
    if rng is None:
        raise ValueError("a random crop or flip needs rng")
    return rng


def decode(encoded: bytes, min_px: int | None = None) -> Image.Image:
    """Decodes an RGB image. Applies the EXIF orientation and makes transparency white.

    Args:
        encoded: a file in one of `glide_jax.images.FORMATS`, of any color mode. Only
            the first frame of an animation is used.
        min_px: allows decoding at a reduced size, with sides of at least this length. By default
            the full size.

    Raises:
        Exception: nearly any type, depending on Pillow's decoder.
    """
    image = open_image(encoded)
    if min_px is not None:
        # JPEG decodes to a half, quarter or eighth at a fraction of the cost, by averaging blocks.
        # The bicubic filter still halves the result, so aliasing is not visible.
        image.draft(None, (min_px, min_px))
    image = upright(image)
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip rather than scale
        levels = np.asarray(image).astype(np.int64)
        image = Image.fromarray((levels.clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    """An RGB image over white, in strips: copies of a large image would take several times its
    memory."""
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, STRIP_PX):
        strip = image.crop((0, top, image.width, min(top + STRIP_PX, image.height)))
        strip = strip.convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        whole.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return whole
