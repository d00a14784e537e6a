"""Output of images: 8-bit conversion, PNG files with metadata, captioned grids, figures."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from glide_jax.errors import UserError
from glide_jax.storage import AnyPath, storage_errors, write_atomically

_MARGIN_PX = 12
_FONT_PX = 15


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


def new_figure(width_in: float, height_in: float) -> Any:
    """A matplotlib figure with constrained layout. Sizes are in inches.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # an optional dependency of commands that plot
    except ImportError:
        raise UserError("plots need matplotlib: pip install -e '.[plot]'") from None
    return Figure(figsize=(width_in, height_in), layout="constrained")


def save_figure(path: Path, figure: Any) -> None:
    """Writes a figure in the format of the path's suffix.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
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
    font = ImageFont.load_default(_FONT_PX)
    lines = [
        textwrap.wrap(caption, int(width_px / (_FONT_PX * 0.5)), max_lines=6, placeholder=" ...")
        if i % columns == 0 or caption != captions[i - 1]
        else []
        for i, caption in enumerate(captions)
    ]
    line_px = int(_FONT_PX * 1.25)
    text_px = max(map(len, lines)) * line_px + 4
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
            draw.text((x, y + height_px + 4 + n * line_px), line, fill="black", font=font)
    return np.asarray(grid)
