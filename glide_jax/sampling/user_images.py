"""Images and masks of the user: files, Pillow images and arrays, and making them square."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import ExifTags, Image, ImageOps

from glide_jax.data.transforms import decode, to_8_bits, to_rgb
from glide_jax.errors import UserError
from glide_jax.images import MAX_FILE_BYTES, NOT_AN_IMAGE, open_image, upright
from glide_jax.storage import expand_home, read_regular

T = TypeVar("T")
AnyImage = str | Path | Image.Image | np.ndarray | jax.Array
"""A file, a Pillow image, or an array: 8-bit levels or floats in [0, 1], (h, w, 3), (h, w, 4) with
transparency, or (h, w) of gray levels."""
AnyMask = str | Path | Image.Image | np.ndarray | jax.Array
"""A file or Pillow image, white where pixels are known; or an array (h, w) of True and False, of 0
and 1, or of 0 and 255."""
Fit = Literal["crop", "pad", "stretch"]
"""How an image becomes square: the largest centered square; margins around it; or stretching."""

GRAY = 128
"""Gray level of the margins of a padded image."""


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an image of any format and color mode: upright, with transparency over white.

    Raises:
        UserError: it is missing, not an image, broken, or larger than `glide_jax.images` allows.
    """
    return np.asarray(_named(path, decode))


def read_alpha(path: Path) -> Bool[np.ndarray, "h w"]:
    """True where an image is opaque: its known pixels, if a hole was cut into it.

    Raises:
        UserError: as `read_image`.
    """

    def alpha(encoded: bytes) -> np.ndarray:
        image = to_8_bits(upright(open_image(encoded)))
        return np.asarray(image.convert("RGBA").getchannel("A")) >= 128

    return _named(path, alpha)


def read_mask(path: Path) -> Bool[np.ndarray, "h w"]:
    """True where a mask is white: pixels to keep. Black pixels are inpainted.

    Raises:
        UserError: as `read_image`.
    """
    return _white(read_image(path))


def as_image(image: Any, name: str = "image") -> UInt8[np.ndarray, "h w 3"]:
    """An image of any kind as 8-bit RGB. Transparency becomes white.

    Args:
        image: see `AnyImage`.
        name: for errors.

    Raises:
        UserError: it is none of these, it is empty, or its values are out of range or not finite.
    """
    if isinstance(image, (str, Path)):
        return read_image(Path(expand_home(image)))
    if isinstance(image, Image.Image):
        return np.asarray(_upright_rgb(image, name))
    pixels = _array(image, name)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[2] in (3, 4)):
        raise UserError(
            f"{name} must have shape (h, w, 3), (h, w, 4) or (h, w), not {pixels.shape}"
        )
    if pixels.dtype.kind == "f" or pixels.dtype.name == "bfloat16":
        levels = pixels.astype(np.float32)
        if not (levels.min() >= 0 and levels.max() <= 1):  # NaN is refused too
            low, high = levels.min(), levels.max()
            raise UserError(f"{name}: floats must be in [0, 1], but these are {low:g} to {high:g}")
        pixels = np.round(255 * levels).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise UserError(f"{name} must be of type uint8 or float, not {pixels.dtype}")
    if pixels.shape[2:] == (3,):
        return pixels
    return np.asarray(to_rgb(Image.fromarray(pixels)))


def as_images(images: Any) -> list[UInt8[np.ndarray, "h w 3"]]:
    """One or several images, see `as_image`, as a list of at least one. Raises UserError."""
    one = isinstance(images, (str, Path, Image.Image)) or getattr(images, "ndim", 4) < 4
    try:
        listed = [images] if one else list(images)
    except TypeError:
        raise UserError(f"images must be files, Pillow images or arrays: {images}") from None
    if not listed:
        raise UserError("no images: give at least one")
    return [as_image(image, f"image {i}") for i, image in enumerate(listed)]


def as_mask(mask: Any, name: str = "known") -> Bool[np.ndarray, "h w"]:
    """A mask of any kind: True where pixels are known.

    Args:
        mask: see `AnyMask`.
        name: for errors.

    Raises:
        UserError: it is none of these, or has other values than two.
    """
    if isinstance(mask, (str, Path)):
        return read_mask(Path(expand_home(mask)))
    if isinstance(mask, Image.Image):
        return _white(np.asarray(_upright_rgb(mask, name)))
    levels = _array(mask, name)
    if levels.ndim == 3 and levels.shape[2] == 1:
        levels = levels[:, :, 0]
    if levels.ndim != 2:
        raise UserError(f"{name} must have shape (h, w), not {levels.shape}")
    if levels.dtype.kind not in "buif" or not any(
        np.isin(levels, two).all() for two in ((0, 1), (0, 255))
    ):
        raise UserError(f"{name} must be True and False, 0 and 1, or 0 and 255: give mask >= 128")
    return levels != 0


def inpainted_image(image: Any, known: Any) -> dict[str, np.ndarray]:
    """The image to inpaint and the mask of its known pixels, as fields of `Request`.

    Raises:
        UserError: see `as_image` and `as_mask`; or their sizes differ.
    """
    pixels, mask = as_image(image), as_mask(known)
    if pixels.shape[:2] != mask.shape:
        raise UserError(
            f"the mask is {mask.shape[1]} x {mask.shape[0]} pixels, but the image is "
            f"{pixels.shape[1]} x {pixels.shape[0]}"
        )
    return {"image": pixels, "known": mask}


def _array(value: Any, name: str) -> np.ndarray:
    """An array of the user, on the host. Raises UserError if it is none, or is empty."""
    try:
        array = np.asarray(value)
    except Exception as error:  # of other libraries' arrays, such as those on an accelerator
        raise UserError(f"{name} is not an array: {error}") from None
    if array.ndim < 2:
        raise UserError(
            f"{name} must be a file, a Pillow image or an array, not {type(value).__name__}"
        )
    if not array.size:
        raise UserError(f"{name} is empty: its shape is {array.shape}")
    return array


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    """A Pillow image as RGB, with its EXIF orientation applied; the image is unchanged."""
    if not image.width * image.height:
        raise UserError(f"{name} is empty: {image.width} x {image.height} pixels")
    try:
        rgb = to_rgb(image)
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        if orientation is not None:
            rgb.getexif()[ExifTags.Base.Orientation] = orientation
        return ImageOps.exif_transpose(rgb)
    except Exception as error:  # nearly any type, depending on Pillow's decoder
        raise UserError(f"{name}: {error}") from None


def _white(pixels: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    """True where an image is white, or 1 if no level is higher."""
    return pixels.mean(-1) >= (0.5 if pixels.max() <= 1 else 128)


def square_image(
    image: UInt8[np.ndarray, "h w 3"], side_px: int, fit: Fit
) -> UInt8[np.ndarray, "side side 3"]:
    """An image as a square of this side, resized with Pillow's antialiasing bicubic filter."""
    h, w, _ = image.shape
    (top, bottom), (left, right) = _box(h, w, fit)
    rows, columns = _inner_size(h, w, side_px, fit)
    inner = Image.fromarray(image).resize(
        (columns, rows), Image.Resampling.BICUBIC, box=(left, top, right, bottom)
    )
    return np.pad(np.asarray(inner), (*_padding(rows, columns), (0, 0)), constant_values=GRAY)


def square_known(
    known: Bool[np.ndarray, "h w"], side_px: int, fit: Fit
) -> Bool[np.ndarray, "side side"]:
    """The known pixels of `square_image`: those to which no unknown pixel contributes.

    Margins are unknown.
    """
    h, w = known.shape
    vertical, horizontal = _box(h, w, fit)
    rows, columns = _inner_size(h, w, side_px, fit)
    from_rows = _contributions(h, *vertical, rows)
    from_columns = _contributions(w, *horizontal, columns)
    touched = from_rows @ (~known).astype(np.float32) @ from_columns.T > 0
    return np.pad(~touched, _padding(rows, columns))


def _inner_size(h: int, w: int, side_px: int, fit: Fit) -> tuple[int, int]:
    """Height and width of the image inside its square."""
    if fit != "pad":
        return side_px, side_px
    return max(round(side_px * h / max(h, w)), 1), max(round(side_px * w / max(h, w)), 1)


def _padding(h: int, w: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Pixels before and after, along height and width, that make an image square."""
    side = max(h, w)
    before_h, before_w = (side - h) // 2, (side - w) // 2
    return (before_h, side - h - before_h), (before_w, side - w - before_w)


def _box(h: int, w: int, fit: Fit) -> tuple[tuple[float, float], tuple[float, float]]:
    """The part of an image that is used: start and stop along height and width, in pixels."""
    if fit != "crop":
        return (0.0, float(h)), (0.0, float(w))
    side = min(h, w)
    top, left = (h - side) / 2, (w - side) / 2
    return (top, top + side), (left, left + side)


def _contributions(
    length: int, start: float, stop: float, resized: int
) -> Float32[np.ndarray, "resized length"]:
    """1 where a pixel contributes to a resized one: within two pixels of its center, the reach of
    the bicubic filter, counted in the larger of both pixels."""
    scale = (stop - start) / resized
    center = start + (np.arange(resized)[:, None] + 0.5) * scale
    return (np.abs(np.arange(length) + 0.5 - center) < 2 * max(scale, 1) + 0.5).astype(np.float32)


def _named(path: Path, read: Callable[[bytes], T]) -> T:
    """Decodes a file's bytes with `read`. Raises UserError that names the file."""
    try:
        return read(read_regular(path, MAX_FILE_BYTES))
    except OSError as error:
        why = error.strerror or NOT_AN_IMAGE
        raise UserError(f"cannot read {path}: {why}") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"cannot read {path}: it has {error}; make it smaller") from None
    except Exception as error:
        raise UserError(f"cannot read {path}: {error}") from None
