"""Images to edit or inpaint: reading them and their masks, and making both square."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from glide_jax.data.transforms import decode
from glide_jax.errors import UserError
from glide_jax.images import MAX_FILE_BYTES, NOT_AN_IMAGE, open_image, upright
from glide_jax.storage import read_regular

T = TypeVar("T")
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
        image = upright(open_image(encoded))
        return np.asarray(image.convert("RGBA").getchannel("A")) >= 128

    return _named(path, alpha)


def read_mask(path: Path) -> Bool[np.ndarray, "h w"]:
    """True where a mask is white: pixels to keep. Black pixels are inpainted.

    Raises:
        UserError: as `read_image`.
    """
    return read_image(path).mean(-1) >= 128


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
