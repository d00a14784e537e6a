"""Random inpainting masks for training, and phrases for the location of the hidden region.

Random numbers are in units of the image's side, so a seed gives the same mask at every size.
"""

import math

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from glide_jax.config import MaskConfig

Mask = Bool[np.ndarray, "h w 1"]
"""True for known pixels, False for hidden pixels, which the model generates."""

CANVAS_PX = 256
"""Approximate minimum side of the canvas for brush strokes: Pillow rounds to integer pixels."""
MAX_HIDDEN_FRACTION = 0.6
"""Largest hidden fraction of an image for which a location is named."""


def random_mask(rng: np.random.Generator, size_px: int, config: MaskConfig) -> Mask:
    """A mask of a random kind with at least one hidden pixel. `config` has the probabilities."""
    kinds = {
        _rectangle: config.rectangle,
        _brush: config.brush,
        _half_plane: config.half_plane,
        _full: config.full,
    }
    frequencies = np.array(list(kinds.values()))
    chosen = rng.choice(len(kinds), p=frequencies / frequencies.sum())
    hidden = list(kinds)[chosen](rng, size_px)
    if not hidden.any():  # in a very small image, the region can lie between pixel centers
        hidden = _full(rng, size_px)
    return ~hidden[:, :, None]


def _rectangle(rng: np.random.Generator, size_px: int) -> Bool[np.ndarray, "h w"]:
    """A rectangle of 5 to 60% of the image, with an aspect ratio of at most 3."""
    area = rng.uniform(0.05, 0.6)
    stretch = min(3.0, 1 / area)  # both sides must fit into the image
    aspect = math.exp(rng.uniform(-1, 1) * math.log(stretch))
    sides = math.sqrt(area * aspect), math.sqrt(area / aspect)
    x, y = (_within(rng.uniform(0, 1 - side), side, size_px) for side in sides)
    return y[:, None] & x


def _within(start: float, length: float, size_px: int) -> Bool[np.ndarray, "n"]:
    centers = _centers(size_px)
    return (start <= centers) & (centers < start + length)


def _brush(rng: np.random.Generator, size_px: int) -> Bool[np.ndarray, "h w"]:
    """One to four random strokes of a thick round brush, covering about 5 to 50%."""
    scale = CANVAS_PX // size_px | 1  # odd, so that each pixel has a center on the canvas
    side = scale * size_px
    width = rng.uniform(0.08, 0.2)
    strokes = int(rng.integers(1, 5))
    # Strokes overlap: at random positions, they cover a fraction of 1 - exp(-coverage).
    coverage = -math.log1p(-rng.uniform(0.05, 0.5))
    round_ends = strokes * math.pi / 4 * width**2
    length = max(coverage - round_ends, 0) / width / strokes
    canvas = Image.new("L", (side, side))
    pen = ImageDraw.Draw(canvas)
    radius = width * side / 2
    for _ in range(strokes):
        points = side * _walk(rng, length) - 0.5  # Pillow's pixel centers are integers
        pen.line(points.ravel().tolist(), fill=1, width=round(2 * radius))
        for x, y in points.tolist():  # round ends and joints
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    return np.asarray(canvas)[scale // 2 :: scale, scale // 2 :: scale] > 0


def _walk(rng: np.random.Generator, length: float) -> np.ndarray:
    """Points (n, 2) of a random walk, reflected at the image's border."""
    turns = math.ceil(length / 0.15) + 1
    heading = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.normal(0, 0.7, turns))
    steps = length / turns * np.stack([np.cos(heading), np.sin(heading)], axis=1)
    path = np.cumsum(np.concatenate([rng.uniform(0, 1, (1, 2)), steps]), axis=0)
    return 1 - np.abs(1 - path % 2)


def _half_plane(rng: np.random.Generator, size_px: int) -> Bool[np.ndarray, "h w"]:
    """20 to 80% of the image, on one side of a random straight line."""
    angle, fraction = rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 0.8)
    cos, sin = math.cos(angle), math.sin(angle)
    across = cos * (_centers(size_px) - 0.5) + sin * (_centers(size_px)[:, None] - 0.5)
    return across < _quantile(fraction, abs(cos), abs(sin))


def _quantile(fraction: float, cos: float, sin: float) -> float:
    """Signed distance from a unit square's center of the line that cuts off this fraction of it.

    The position across the line is a sum of two uniform variables of widths cos and sin. Its
    density is a trapezoid.
    """
    if fraction > 0.5:
        return -_quantile(1 - fraction, cos, sin)
    short, long = sorted((cos, sin))
    flank = short / (2 * long)  # probability of the trapezoid's rising side
    if fraction < flank:
        return math.sqrt(2 * short * long * fraction) - (long + short) / 2
    return long * (fraction - 0.5)


def _full(rng: np.random.Generator, size_px: int) -> Bool[np.ndarray, "h w"]:
    return np.ones((size_px, size_px), bool)


def _centers(size_px: int) -> np.ndarray:
    """Pixel centers in 0..1."""
    return (np.arange(size_px) + 0.5) / size_px


def place(mask: Mask) -> str:
    """The location of the hidden region as a phrase.

    It depends on the region's centroid. The central fifth of each axis counts as the middle.

    Returns:
        For example "at the top left", "on the right" or "in the middle". Empty if nothing or more
        than 60% of the image is hidden, or if the region is scattered or surrounds the center.
    """
    hidden = ~mask[:, :, 0]
    if not 0 < hidden.mean() <= MAX_HIDDEN_FRACTION:
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
    # The RMS distance from the center, in sides, is 0.41 for the full image and at most 0.36 for a
    # rectangle with a location.
    distance = math.sqrt(rows @ (y - 0.5) ** 2 + columns @ (x - 0.5) ** 2)
    return "in the middle" if distance < 0.36 else ""


def _third(center: float, low: str, high: str) -> str:
    if center < 0.4:
        return low
    return high if center > 0.6 else ""


def with_place(caption: str, mask: Mask) -> str:
    """Appends the location of the hidden region to a caption: "a red circle, at the top left".

    The empty caption is unchanged, since classifier-free guidance needs it empty. So is a caption
    whose mask has no location.
    """
    where = place(mask)
    return f"{caption}, {where}" if caption and where else caption
