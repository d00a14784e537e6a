"""Images as people see them: PNG files that remember their prompt, and captioned grids."""

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
    """[-1, 1] to the nearest of 256 levels; values outside are clipped."""
    return np.clip(np.round((images + 1) * 127.5), 0, 255).astype(np.uint8)


def to_pil(images: UInt8[np.ndarray, "b h w 3"]) -> list[Image.Image]:
    """Each image as Pillow's, for all that it can do and save."""
    return [Image.fromarray(image) for image in images]


def save_png(
    path: AnyPath, image: UInt8[np.ndarray, "h w 3"], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a PNG whose text chunks hold `metadata` (prompt, seed, settings).

    Raises:
        UserError: the file cannot be written.
    """
    info = PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        info.add_itxt(key, value)
    png = io.BytesIO()
    Image.fromarray(image).save(png, format="PNG", pnginfo=info)
    with storage_errors("write", path):
        # All of it or nothing: a run that goes on later takes what is there for whole.
        write_atomically(path, png.getvalue())


def save_grid(
    path: Path,
    images: UInt8[np.ndarray, "b h w 3"],
    captions: Sequence[str],
    columns: int,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a PNG of images in rows, each with its caption under it.

    Raises:
        UserError: the file cannot be written.
    """
    save_png(path, draw_grid(images, captions, columns), metadata)


def new_figure(width_in: float, height_in: float) -> Any:
    """A matplotlib figure whose parts make room for each other; sizes in inches.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # late: only commands that plot need it
    except ImportError:
        raise UserError("plots need matplotlib: pip install -e '.[plot]'") from None
    return Figure(figsize=(width_in, height_in), layout="constrained")


def save_figure(path: Path, figure: Any) -> None:
    """Writes a figure in the format of the path's suffix. Raises UserError if it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {error}") from error


def draw_grid(
    images: UInt8[np.ndarray, "b h w 3"], captions: Sequence[str], columns: int
) -> UInt8[np.ndarray, "grid_h grid_w 3"]:
    """Images in rows on white, each with its caption under it.

    Small images are shown at least 192 px wide, so that captions fit; a run of equal captions
    is written once, under its first image.

    Args:
        images: (b, h, w, 3).
        captions: one an image.
        columns: images in a row; fewer where there are not as many.
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
