"""Masks for inpainting training: what of an image is known, and where the hidden part is.

Drawn in units of the image's side, so that a generator's mask is the same at every size.
"""

import math

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from glide_jax.config import MaskConfig

Mask = Bool[np.ndarray, "h w 1"]
"""True where an image is known, False where it is to be painted."""

CANVAS_PX = 256
"""Least side, or nearly, of the canvas that brushes draw on: Pillow rounds to whole pixels."""
MOST_HIDDEN = 0.6
"""Share of an image above which the hidden part is at no particular place."""


def draw_mask(rng: np.random.Generator, size_px: int, config: MaskConfig) -> Mask:
    """A mask of a random kind, of the frequencies configured. At least one pixel is hidden."""
    kinds = {
        _rectangle: config.rectangle,
        _brush: config.brush,
        _half_plane: config.half_plane,
        _whole: config.whole,
    }
    frequencies = np.array(list(kinds.values()))
    chosen = rng.choice(len(kinds), p=frequencies / frequencies.sum())
    hidden = list(kinds)[chosen](rng, size_px)
    if not hidden.any():  # the image is so small that the region falls between its pixels
        hidden = _whole(rng, size_px)
    return ~hidden[:, :, None]


def _rectangle(rng: np.random.Generator, size_px: int) -> Bool[np.ndarray, "h w"]:
    """5 to 60% of the image, at most three times as long as wide, anywhere inside."""
    area = rng.uniform(0.05, 0.6)
    stretch = min(3.0, 1 / area)  # no side longer than the image's
    aspect = math.exp(rng.uniform(-1, 1) * math.log(stretch))
    sides = math.sqrt(area * aspect), math.sqrt(area / aspect)
    x, y = (_within(rng.uniform(0, 1 - side), side, size_px) for side in sides)
    return y[:, None] & x


def _within(start: float, length: float, size_px: int) -> Bool[np.ndarray, "n"]:
    centers = _centers(size_px)
    return (start <= centers) & (centers < start + length)


def _brush(rng: np.random.Generator, size_px: int) -> Bool[np.ndarray, "h w"]:
    """One to four strokes of a thick round brush that wander about, on 5 to 50% or so."""
    scale = CANVAS_PX // size_px | 1  # odd, so that there is a middle
    side = scale * size_px
    width = rng.uniform(0.08, 0.2)
    strokes = int(rng.integers(1, 5))
    # Strokes cross: at random places, a share of 1 - exp(-painted) is covered.
    painted = -math.log1p(-rng.uniform(0.05, 0.5))
    round_ends = strokes * math.pi / 4 * width**2
    length = max(painted - round_ends, 0) / width / strokes
    canvas = Image.new("L", (side, side))
    pen = ImageDraw.Draw(canvas)
    radius = width * side / 2
    for _ in range(strokes):
        points = side * _walk(rng, length) - 0.5  # Pillow's pixels have their middle at 0
        pen.line(points.ravel().tolist(), fill=1, width=round(2 * radius))
        for x, y in points.tolist():  # round ends, and no notches where it turns
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    return np.asarray(canvas)[scale // 2 :: scale, scale // 2 :: scale] > 0


def _walk(rng: np.random.Generator, length: float) -> np.ndarray:
    """(n, 2): points of a path in the image that turns as it goes, reflected at the border."""
    turns = math.ceil(length / 0.15) + 1
    heading = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.normal(0, 0.7, turns))
    steps = length / turns * np.stack([np.cos(heading), np.sin(heading)], axis=1)
    path = np.cumsum(np.concatenate([rng.uniform(0, 1, (1, 2)), steps]), axis=0)
    return 1 - np.abs(1 - path % 2)


def _half_plane(rng: np.random.Generator, size_px: int) -> Bool[np.ndarray, "h w"]:
    """20 to 80% of the image, on one side of a straight line of any direction."""
    angle, share = rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 0.8)
    cos, sin = math.cos(angle), math.sin(angle)
    across = cos * (_centers(size_px) - 0.5) + sin * (_centers(size_px)[:, None] - 0.5)
    return across < _quantile(share, abs(cos), abs(sin))


def _quantile(share: float, cos: float, sin: float) -> float:
    """Where a line across a unit square must lie, from its center, to cut this share off it.

    Positions across it are a sum of two uniform variables, of widths cos and sin: their density is
    a trapezium.
    """
    if share > 0.5:
        return -_quantile(1 - share, cos, sin)
    short, long = sorted((cos, sin))
    flank = short / (2 * long)  # the share up to where the density is level
    if share < flank:
        return math.sqrt(2 * short * long * share) - (long + short) / 2
    return long * (share - 0.5)


def _whole(rng: np.random.Generator, size_px: int) -> Bool[np.ndarray, "h w"]:
    return np.ones((size_px, size_px), bool)


def _centers(size_px: int) -> np.ndarray:
    """Where the middle of each pixel lies, in 0..1."""
    return (np.arange(size_px) + 0.5) / size_px


def place(mask: Mask) -> str:
    """Where the hidden part of an image is, in words.

    By its centroid, the image's middle fifth in each direction being its middle.

    Returns:
        For example "at the top left", "on the right" or "in the middle". Empty if nothing is
        hidden, or more than 60% of the image, or what surrounds its middle or is scattered.
    """
    hidden = ~mask[:, :, 0]
    share = hidden.mean()
    if not 0 < share <= MOST_HIDDEN:
        return ""
    h, w = hidden.shape
    y, x = (_centers(n) for n in (h, w))
    rows, columns = hidden.sum(1) / hidden.sum(), hidden.sum(0) / hidden.sum()
    center_y, center_x = rows @ y, columns @ x
    vertical = _third(center_y, "top", "bottom")
    horizontal = _third(center_x, "left", "right")
    if vertical:
        return f"at the {vertical} {horizontal}".rstrip()
    if horizontal:
        return f"on the {horizontal}"
    # The root mean square distance from the middle, in sides: 0.41 over all of the image, but
    # never above 0.36 over a rectangle that is named here.
    distance = math.sqrt(rows @ (y - 0.5) ** 2 + columns @ (x - 0.5) ** 2)
    return "in the middle" if distance < 0.36 else ""


def _third(center: float, low: str, high: str) -> str:
    if center < 0.4:
        return low
    return high if center > 0.6 else ""


def with_place(caption: str, mask: Mask) -> str:
    """A caption that also says where to paint: "a red circle, at the top left".

    Unchanged if it is empty, as it then must stay for classifier-free guidance, or if there is no
    place to name.
    """
    where = place(mask)
    return f"{caption}, {where}" if caption and where else caption
