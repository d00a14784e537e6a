"""Image preprocessing: decode, crop, resize, flip.

Images stay 8-bit until they are on the devices: a quarter of the memory traffic. `to_float`
converts them there.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import jax
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, TiffImagePlugin

from glide_jax.data.records import BadRecordError
from glide_jax.images import NOT_AN_IMAGE, open_image, upright

AnyArray = TypeVar("AnyArray", np.ndarray, jax.Array)

BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
"""Tags of TIFF files."""
HIGH, LOW = np.float32(65_793 / 2**23), np.float32(1 / 127.5 - 65_793 / 2**23)
"""1 / 127.5 as a sum. A level times HIGH is exact: the result is rounded as that of a division."""
STRIP_PX = 256
"""Rows that are converted at a time: copies of a large image take several times its memory."""


def load_pixels(
    encoded: bytes, resolution_px: int, rng: np.random.Generator | None = None, **options: Any
) -> UInt8[np.ndarray, "h w 3"]:
    """An image as a square of `resolution_px`: see `load_sizes`."""
    return load_sizes(encoded, [resolution_px], rng, **options)[0]


def load_sizes(
    encoded: bytes,
    sizes_px: Sequence[int],
    rng: np.random.Generator | None = None,
    *,
    crop: Literal["center", "random"] = "center",
    horizontal_flip: bool = False,
    name: str = "image",
) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """Decodes, crops and resizes an image to a square, in each of several resolutions.

    The EXIF orientation is applied and transparency becomes white. The largest square, from the
    center or a random position, is resized with Pillow's antialiasing bicubic filter.

    Args:
        encoded: a file in one of `glide_jax.images.FORMATS`, of any color mode.
        sizes_px: sides of the results.
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
        image = decode(encoded, 2 * max(sizes_px))
    except Image.UnidentifiedImageError:
        reason = NOT_AN_IMAGE if encoded else "the file is empty"
        raise BadRecordError(f"{name}: {reason}") from None
    except Exception as error:
        raise BadRecordError(f"{name}: cannot decode the image ({error})") from error
    side = min(image.size)
    left, top = ((length - side) * place for length in image.size)
    box = (left, top, left + side, top + side)
    squares = (image.resize((px, px), Image.Resampling.BICUBIC, box=box) for px in sizes_px)
    return [np.asarray(square)[:, :: -1 if mirrored else 1] for square in squares]


def to_float(pixels: UInt8[AnyArray, "*b h w 3"]) -> Float32[AnyArray, "*b h w 3"]:
    """Converts 8-bit levels 0..255 to [-1, 1]: pixels / 127.5 - 1, on the host or in a program."""
    levels = pixels.astype(np.float32)
    # XLA replaces the division by a multiplication, which rounds differently.
    return levels * HIGH + levels * LOW - 1


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
    return to_rgb(upright(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any of Pillow's modes as RGB, over white where it is transparent.

    Raises:
        ValueError: gray levels of an unknown range, see `to_8_bits`.
    """
    image = to_8_bits(image)
    if image.has_transparency_data:
        image = _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def to_8_bits(image: Image.Image) -> Image.Image:
    """An image in a mode that Pillow converts to RGB and RGBA without clipping.

    Gray levels of 32 bits have no standard range: floats up to 1 or 255 and integers up to 255 or
    65,535 are scaled to 8 bits.

    Raises:
        ValueError: other gray levels of 32 bits.
    """
    if image.mode == "La":  # a gray RGBa
        return Image.merge("RGBa", [*[image.getchannel(0)] * 3, image.getchannel(1)])
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    levels = np.asarray(image)
    low, high = levels.min(), levels.max()
    white = 2.0 ** _bits(image) - 1
    if image.mode == "F":
        white = 1 if high <= 1 else 255
    elif white > 65_535:
        white = 255 if high <= 255 else 65_535
    if not 0 <= low <= high <= white:  # NaN is refused too
        raise ValueError("the range of its gray levels is unknown: save it with 8 or 16 bits")
    scaled = np.empty(levels.shape, np.uint8)
    for top in range(0, image.height, STRIP_PX):
        rows = slice(top, top + STRIP_PX)
        scaled[rows] = np.round(levels[rows].astype(np.float32) * (255 / white))
    return _gray(scaled, image)


def _bits(image: Image.Image) -> int:
    """Bits of an integer gray level."""
    bits = 32 if image.mode == "I" else 16
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(BITS_PER_SAMPLE, (bits,))[0]  # 12 in mode I;16
    return bits


def _gray(levels: UInt8[np.ndarray, "h w"], image: Image.Image) -> Image.Image:
    """A gray image with these levels: white and transparent where the given image is."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    if tags.get(PHOTOMETRIC) == 0:  # white is zero
        levels = 255 - levels
    gray = Image.fromarray(levels)
    if "transparency" in image.info:  # of a PNG: the level that is transparent
        opaque = np.asarray(image) != image.info["transparency"]
        gray.putalpha(Image.fromarray((255 * opaque).astype(np.uint8)))
    return gray


def _over_white(image: Image.Image) -> Image.Image:
    """An RGB image over white."""
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, STRIP_PX):
        strip = image.crop((0, top, image.width, min(top + STRIP_PX, image.height)))
        strip = strip.convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        whole.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return whole
