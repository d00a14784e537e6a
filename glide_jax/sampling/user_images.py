"""Images that people bring to be edited: read, told what is known of them, and made square."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image, ImageOps

from glide_jax.data.transforms import decode
from glide_jax.errors import UserError

T = TypeVar("T")
Fit = Literal["crop", "pad", "stretch"]
"""How an image becomes square: the largest square from its middle; all of it, in a larger
square; or all of it, out of proportion."""

GRAY = 128
"""What fills up a padded image."""


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Reads a picture of any format and color mode: upright, transparency made white.

    Raises:
        UserError: it is missing, not an image, broken, or too large (beyond Pillow's limit).
    """
    return np.asarray(_named(path, decode))


def read_alpha(path: Path) -> Bool[np.ndarray, "h w"]:
    """True where an image is opaque: what is known of it, where a hole was cut into it.

    Raises:
        UserError: as `read_image`.
    """

    def alpha(encoded: bytes) -> np.ndarray:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
        return np.asarray(image.convert("RGBA"))[..., 3] >= 128

    return _named(path, alpha)


def read_mask(path: Path) -> Bool[np.ndarray, "h w"]:
    """True where a mask is white: keep; black is to be painted.

    Raises:
        UserError: as `read_image`.
    """
    return read_image(path).mean(-1) >= 128


def square_image(
    image: UInt8[np.ndarray, "h w 3"], side_px: int, fit: Fit
) -> UInt8[np.ndarray, "side side 3"]:
    """An image as a square of this size, resampled with Pillow's antialiasing bicubic filter."""
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
    """What is known of `square_image`: the pixels to which nothing unknown contributes.

    An image's padding is not known.
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
    """What is taken of an image: from where to where along height and width, in pixels."""
    if fit != "crop":
        return (0.0, float(h)), (0.0, float(w))
    side = min(h, w)
    top, left = (h - side) / 2, (w - side) / 2
    return (top, top + side), (left, left + side)


def _contributions(
    length: int, start: float, stop: float, resized: int
) -> Float32[np.ndarray, "resized length"]:
    """1 where a pixel lies under the bicubic filter of a resized one: two pixels to each side of
    its center, counted in the larger pixels."""
    scale = (stop - start) / resized
    center = start + (np.arange(resized)[:, None] + 0.5) * scale
    return (np.abs(np.arange(length) + 0.5 - center) < 2 * max(scale, 1) + 0.5).astype(np.float32)


def _named(path: Path, read: Callable[[bytes], T]) -> T:
    """What `read` makes of a file's bytes, its many exceptions turned into one line."""
    try:
        return read(path.read_bytes())
    except OSError as error:
        why = error.strerror or "not an image that Pillow can read"
        raise UserError(f"cannot read {path}: {why}") from None
    except Image.DecompressionBombError:
        raise UserError(f"cannot read {path}: it has too many pixels; make it smaller") from None
    except Exception as error:
        raise UserError(f"cannot read {path}: {error}") from None
