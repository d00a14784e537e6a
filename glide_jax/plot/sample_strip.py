"""Sample strips: samples for the same prompts and seeds at several training steps."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from glide_jax import fonts
from glide_jax.errors import UserError
from glide_jax.images import draw_grid, open_image
from glide_jax.runs.folder import Run
from glide_jax.runs.paths import SAMPLES, name_of
from glide_jax.storage import AnyPath

MAX_STEPS = 8
"""Largest number of steps shown, evenly spaced from the first to the last grid."""
MAX_PROMPTS = 4
"""Largest number of prompts: those in the first row of a grid."""
IMAGES_PER_PROMPT = 3
"""Images per prompt in the grids of upsamplers and inpainting models: input, sample, original."""

Pixels = UInt8[np.ndarray, "h w 3"]


def sample_strip(runs: Sequence[AnyPath]) -> Pixels:
    """The strips of all runs, one below the other: a row per prompt, a column per step.

    Raises:
        UserError: a folder is not a run folder, or has no samples/.
    """
    strips = [_strip(run, len(runs) > 1) for run in runs]
    image = Image.new(
        "RGB", (max(s.width for s in strips), sum(s.height for s in strips)), color="white"
    )
    top = 0
    for strip in strips:
        image.paste(strip, (0, top))
        top += strip.height
    return np.asarray(image)


def _strip(run_dir: AnyPath, named: bool) -> Image.Image:
    """A run's strip, with the run's name above it if `named`."""
    model = Run.open(run_dir).config.denoiser
    margin, side = _margin_and_side(model.resolution_px)
    grids = _grids(run_dir)
    last = grids[-1][1]
    captions = _captions(last, margin, side)
    indices, columns = _columns(
        {step: _tiles(grid, margin, side) for step, grid in grids}, model.condition_channels > 0
    )

    header = (2 if named else 1) * 24
    cell = side + margin
    row_heights = [max(side, captions[i].height) + margin for i in indices]
    size = margin + cell * (1 + len(columns)), margin + header + sum(row_heights)
    strip = Image.new("RGB", size, color="white")
    draw = ImageDraw.Draw(strip)
    if named:
        fonts.draw_text(draw, margin, margin, name_of(run_dir))
    for row, i in enumerate(indices):
        top = margin + header + sum(row_heights[:row])
        strip.paste(captions[i], (margin, top))
        for column, images in enumerate(columns.values(), start=1):
            strip.paste(images[row], (margin + column * cell, top))
    for column, label in enumerate(columns, start=1):
        fonts.draw_text(draw, margin + column * cell, margin + header - 22, label)
    return strip


def _columns(
    tiles: dict[int, list[Image.Image]], conditioned: bool
) -> tuple[Sequence[int], dict[str, list[Image.Image]]]:
    """Index of each prompt's first tile, and the strip's columns by their labels.

    Args:
        tiles: the first row of each grid, by step.
        conditioned: whether grids have IMAGES_PER_PROMPT tiles per prompt.
    """
    last = tiles[max(tiles)]
    if not conditioned:
        indices = range(len(last))[:MAX_PROMPTS]
        return indices, {_label(step): [row[i] for i in indices] for step, row in tiles.items()}
    indices = range(0, len(last) - IMAGES_PER_PROMPT + 1, IMAGES_PER_PROMPT)[:MAX_PROMPTS]
    samples = {_label(step): [row[i + 1] for i in indices] for step, row in tiles.items()}
    given, originals = ([last[i + offset] for i in indices] for offset in (0, 2))
    return indices, {"given": given} | samples | {"original": originals}


def _grids(run_dir: AnyPath) -> list[tuple[int, Image.Image]]:
    """Steps and their grids, without those of another size, which show other prompts."""
    found = (run_dir / SAMPLES).glob("*.png")
    files = {int(file.stem): file for file in found if file.stem.isdecimal() and file.is_file()}
    if not files:
        raise UserError(f"{run_dir} has no {SAMPLES}/STEP.png: it has no samples yet")
    try:
        grids = [(step, open_image(files[step].read_bytes())) for step in sorted(files)]
        grids = [(step, grid) for step, grid in grids if grid.size == grids[-1][1].size]
        chosen = np.unique(np.linspace(0, len(grids) - 1, MAX_STEPS).round().astype(int))
        return [(grids[i][0], grids[i][1].convert("RGB")) for i in chosen]
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise UserError(f"cannot read the grids in {run_dir / SAMPLES}: {error}") from error


def _margin_and_side(image_px: int) -> tuple[int, int]:
    """Distance between the tiles of `draw_grid` and their side, in pixels."""
    black = draw_grid(np.zeros((1, image_px, image_px, 3), np.uint8), [""], columns=1)
    columns = np.flatnonzero((black == 0).all(-1).any(0))
    return int(columns[0]), len(columns)


def _tiles(grid: Image.Image, margin: int, side: int) -> list[Image.Image]:
    """The tiles of a grid's first row."""
    lefts = range(margin, grid.width - side, margin + side)
    return [grid.crop((left, margin, left + side, margin + side)) for left in lefts]


def _captions(grid: Image.Image, margin: int, side: int) -> list[Image.Image]:
    """The captions below the first row: the area above the white margin of the next row."""
    top = margin + side
    white = (np.asarray(grid)[top:] == 255).all((1, 2))
    bottom = next(y for y in range(len(white)) if white[y : y + margin].all())
    lefts = range(margin, grid.width - side, margin + side)
    return [grid.crop((left, top, left + side, top + bottom)) for left in lefts]


def _label(step: int) -> str:
    return f"step {step:,}"
