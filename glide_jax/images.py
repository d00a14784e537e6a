"""Image files: opening within limits; 8-bit conversion, PNG with metadata, grids, figures."""

import contextlib
import functools
import importlib.util
import io
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageOps, PngImagePlugin

from glide_jax import fonts
from glide_jax.errors import UserError
from glide_jax.storage import AnyPath, require_file, storage_errors, write_atomically

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Pillow's names of the formats that are opened, whatever a file is called. Others of Pillow's
start programs (EPS) or are not images of pixels."""
NOT_AN_IMAGE = f"not an image in one of the formats {', '.join(FORMATS)}"
MAX_DECODED_BYTES = 2**29
"""Memory of a decoded image: 134 megapixels, as Pillow stores 4 bytes per pixel of color."""
MAX_FILE_BYTES = 2**29
"""Size of an encoded image."""
NO_MATPLOTLIB = "plots need matplotlib: pip install -e '.[plot]'"

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_MARGIN_PX = 12

# MAX_DECODED_BYTES is the limit. Pillow warns at two thirds of it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_image(encoded: bytes) -> Image.Image:
    """Opens an image of `FORMATS` within limits, without decoding its pixels.

    Raises:
        PIL.UnidentifiedImageError: not an image, or one of another format.
        PIL.Image.DecompressionBombError: it has too many pixels.
        Exception: nearly any type, depending on Pillow's decoder, for a damaged file.
    """
    if encoded.startswith(_PNG_SIGNATURE):
        encoded = _without_long_texts(encoded)
    too_large = f"too many pixels: the limit is {MAX_DECODED_BYTES / 4e6:.0f} megapixels"
    try:
        image = Image.open(io.BytesIO(encoded), formats=_available_formats())
    except Image.DecompressionBombError:
        raise Image.DecompressionBombError(too_large) from None
    if 4 * image.width * image.height > MAX_DECODED_BYTES:
        raise Image.DecompressionBombError(too_large)
    return image


def upright(image: Image.Image) -> Image.Image:
    """Decodes an image and applies its EXIF orientation, in place.

    An orientation that cannot be read is ignored.

    Raises:
        Exception: nearly any type, depending on Pillow's decoder.
    """
    image.load()
    # The parser raises many exception types on malformed EXIF, beside which the pixels are good.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


@functools.cache
def _available_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this installation of Pillow knows: AVIF came with Pillow 11.3."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _without_long_texts(png: bytes) -> bytes:
    """A PNG without the texts and color profiles that are longer than Pillow's limits.

    Pillow would refuse the pixels with them.
    """
    kept, start, place, total = [], 0, len(_PNG_SIGNATURE), 0
    while place + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, place)
        end = place + 12 + length
        if kind in _PNG_TEXTS:
            size = 0
            if total <= PngImagePlugin.MAX_TEXT_MEMORY:  # else no more are inflated
                size = _inflated_size(kind, png[place + 8 : end - 4])
                total += size
            if size > PngImagePlugin.MAX_TEXT_CHUNK or total > PngImagePlugin.MAX_TEXT_MEMORY:
                kept.append(png[start:place])
                start = end
        place = end
    return b"".join([*kept, png[start:]]) if kept else png


def _inflated_size(kind: bytes, content: bytes) -> int:
    """Bytes of a PNG's text or color profile, counted up to Pillow's limit and one more."""
    rest = content.partition(b"\0")[2]
    if kind == b"tEXt" or (kind == b"iTXt" and rest[:1] != b"\1"):
        return len(content)
    packed = rest[2:].split(b"\0", 2)[-1] if kind == b"iTXt" else rest[1:]
    try:
        return len(zlib.decompressobj().decompress(packed, PngImagePlugin.MAX_TEXT_CHUNK + 1))
    except zlib.error:  # Pillow ignores such a text
        return 0


def to_uint8(images: Float[np.ndarray, "b h w 3"]) -> UInt8[np.ndarray, "b h w 3"]:
    """Converts [-1, 1] to the nearest 8-bit level. Values outside are clipped."""
    return np.clip(np.round((images + 1) * 127.5), 0, 255).astype(np.uint8)


def to_pil(images: UInt8[np.ndarray, "b h w 3"]) -> list[Image.Image]:
    """Converts each image to a PIL image."""
    return [Image.fromarray(image) for image in images]


def resized(
    images: UInt8[np.ndarray, "b h w 3"], px: int, method: Image.Resampling
) -> UInt8[np.ndarray, "b {px} {px} 3"]:
    """Resizes images to `px` square with one of Pillow's filters."""
    return np.stack([np.asarray(Image.fromarray(p).resize((px, px), method)) for p in images])


def save_png(
    path: AnyPath,
    image: UInt8[np.ndarray, "h w 3"],
    metadata: Mapping[str, str | None] | None = None,
) -> None:
    """Writes a PNG with `metadata` (prompt, seed, settings) in its text chunks; None is omitted.

    Raises:
        UserError: the file cannot be written.
    """
    info = PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        if value is not None:
            info.add_itxt(key, value)
    png = io.BytesIO()
    Image.fromarray(image).save(png, format="PNG", pnginfo=info)
    with storage_errors("write", path):
        # A resumed run treats existing files as complete.
        write_atomically(path, png.getvalue())


def save_grid(
    path: Path,
    images: UInt8[np.ndarray, "b h w 3"],
    captions: Sequence[str],
    columns: int,
    metadata: Mapping[str, str | None] | None = None,
) -> None:
    """Writes a grid of captioned images as a PNG, see `draw_grid`.

    Raises:
        UserError: the file cannot be written.
    """
    save_png(path, draw_grid(images, captions, columns), metadata)


def require_figure(flag: str, path: Path | None) -> None:
    """Checks, before a long computation, that a plot can be written. None: no plot is wanted.

    Raises:
        UserError: another format than PNG, SVG or PDF, no permission, or no matplotlib.
    """
    require_file(flag, path, (".png", ".svg", ".pdf"))
    if path is not None and importlib.util.find_spec("matplotlib") is None:
        raise UserError(NO_MATPLOTLIB)


def new_figure(width_in: float, height_in: float) -> Any:
    """A matplotlib figure with constrained layout. Sizes are in inches.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # an optional dependency of commands that plot
    except ImportError:
        raise UserError(NO_MATPLOTLIB) from None
    return Figure(figsize=(width_in, height_in), layout="constrained")


def save_figure(path: Path, figure: Any) -> None:
    """Writes a figure in the format of the path's suffix.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=120, format=path.suffix.removeprefix(".").lower())
        write_atomically(path, drawn.getvalue())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {error}") from error


def draw_grid(
    images: UInt8[np.ndarray, "b h w 3"], captions: Sequence[str], columns: int
) -> UInt8[np.ndarray, "grid_h grid_w 3"]:
    """A white grid of images with captions below them.

    Images are displayed at least 192 px wide, to leave room for captions. Consecutive equal
    captions in a row are written once, below the first image.

    Args:
        images: (b, h, w, 3).
        captions: one caption per image.
        columns: images per row, at most.
    """
    assert len(images) == len(captions) > 0
    columns = min(columns, len(images))
    width_px = images.shape[2] * max(1, -(-192 // images.shape[2]))
    height_px = width_px * images.shape[1] // images.shape[2]
    lines = [
        fonts.wrap(caption, width_px) if i % columns == 0 or caption != captions[i - 1] else []
        for i, caption in enumerate(captions)
    ]
    text_px = max(map(len, lines)) * fonts.LINE_PX + 4
    cell_w, cell_h = width_px + _MARGIN_PX, height_px + text_px + _MARGIN_PX
    rows = -(-len(images) // columns)
    grid = Image.new("RGB", (columns * cell_w + _MARGIN_PX, rows * cell_h + _MARGIN_PX), "white")
    draw = ImageDraw.Draw(grid)
    for i, (image, text) in enumerate(zip(images, lines, strict=True)):
        x = _MARGIN_PX + i % columns * cell_w
        y = _MARGIN_PX + i // columns * cell_h
        shown = Image.fromarray(image).resize((width_px, height_px), Image.Resampling.BICUBIC)
        grid.paste(shown, (x, y))
        for n, line in enumerate(text):
            fonts.draw_text(draw, x, y + height_px + 4 + n * fonts.LINE_PX, line)
    return np.asarray(grid)
