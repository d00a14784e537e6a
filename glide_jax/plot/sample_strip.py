"""Film strips: how the images of the same prompts and seeds change while a run trains."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from glide_jax.errors import UserError
from glide_jax.images import draw_grid
from glide_jax.runs.folder import Run
from glide_jax.runs.layout import SAMPLES, name_of
from glide_jax.storage import AnyPath

MOMENTS = 8
"""Columns at most; evenly spaced among the grids that are there, the first and last among them."""
PROMPTS = 4
"""Rows at most; a grid's first row has no more."""
PARTS = 3
"""Images that `preview.Preview` shows of a prompt where the model is given one: given, drawn,
whole."""

Pixels = UInt8[np.ndarray, "h w 3"]


def sample_strip(runs: Sequence[AnyPath]) -> Pixels:
    """A row for each prompt, a column for each moment, each run under the other.

    Raises:
        UserError: a folder is not a run's, or has no samples/ to show.
    """
    strips = [_strip(run, len(runs) > 1) for run in runs]
    film = Image.new(
        "RGB", (max(s.width for s in strips), sum(s.height for s in strips)), color="white"
    )
    top = 0
    for strip in strips:
        film.paste(strip, (0, top))
        top += strip.height
    return np.asarray(film)


def _strip(run_dir: AnyPath, named: bool) -> Image.Image:
    model = Run.open(run_dir).config.denoiser
    margin, side = _margin_and_side(model.resolution_px)
    moments = _moments(run_dir)
    newest = moments[-1][1]
    tiles = {step: _tiles(grid, margin, side) for step, grid in moments}
    last, captions = _tiles(newest, margin, side), _captions(newest, margin, side)
    if model.condition_channels:
        firsts = range(0, len(last) - PARTS + 1, PARTS)[:PROMPTS]
        columns = {"given": [last[i] for i in firsts]}
        columns |= {_label(step): [row[i + 1] for i in firsts] for step, row in tiles.items()}
        columns["whole image"] = [last[i + 2] for i in firsts]
    else:
        firsts = range(len(last))[:PROMPTS]
        columns = {_label(step): [row[i] for i in firsts] for step, row in tiles.items()}

    font = ImageFont.load_default(15)
    header = (2 if named else 1) * 24
    cell = side + margin
    row_heights = [max(side, captions[i].height) + margin for i in firsts]
    size = margin + cell * (1 + len(columns)), margin + header + sum(row_heights)
    strip = Image.new("RGB", size, color="white")
    draw = ImageDraw.Draw(strip)
    if named:
        draw.text((margin, margin), name_of(run_dir), fill="black", font=font)
    for row, i in enumerate(firsts):
        top = margin + header + sum(row_heights[:row])
        strip.paste(captions[i], (margin, top))
        for column, images in enumerate(columns.values(), start=1):
            strip.paste(images[row], (margin + column * cell, top))
    for column, label in enumerate(columns, start=1):
        draw.text((margin + column * cell, margin + header - 22), label, fill="black", font=font)
    return strip


def _moments(run_dir: AnyPath) -> list[tuple[int, Image.Image]]:
    """Steps and their grids; of those as large as the newest, as others show other prompts."""
    files = {
        int(file.stem): file for file in (run_dir / SAMPLES).glob("*.png") if file.stem.isdecimal()
    }
    if not files:
        raise UserError(f"{run_dir} has no {SAMPLES}/STEP.png: nothing is drawn yet")
    try:
        grids = [(step, Image.open(io.BytesIO(files[step].read_bytes()))) for step in sorted(files)]
        grids = [(step, grid) for step, grid in grids if grid.size == grids[-1][1].size]
        chosen = np.unique(np.linspace(0, len(grids) - 1, MOMENTS).round().astype(int))
        return [(grids[i][0], grids[i][1].convert("RGB")) for i in chosen]
    except OSError as error:
        raise UserError(f"cannot read the grids in {run_dir / SAMPLES}: {error}") from error


def _margin_and_side(image_px: int) -> tuple[int, int]:
    """How far apart `draw_grid` puts images of this size, and how large it shows them."""
    black = draw_grid(np.zeros((1, image_px, image_px, 3), np.uint8), [""], columns=1)
    columns = np.flatnonzero((black == 0).all(-1).any(0))
    return int(columns[0]), len(columns)


def _tiles(grid: Image.Image, margin: int, side: int) -> list[Image.Image]:
    """The images of a grid's first row."""
    lefts = range(margin, grid.width - side, margin + side)
    return [grid.crop((left, margin, left + side, margin + side)) for left in lefts]


def _captions(grid: Image.Image, margin: int, side: int) -> list[Image.Image]:
    """What is written under the first row: all above the white before the next row."""
    top = margin + side
    white = (np.asarray(grid)[top:] == 255).all((1, 2))
    bottom = next(y for y in range(len(white)) if white[y : y + margin].all())
    lefts = range(margin, grid.width - side, margin + side)
    return [grid.crop((left, top, left + side, top + bottom)) for left in lefts]


def _label(step: int) -> str:
    return f"step {step:,}"
