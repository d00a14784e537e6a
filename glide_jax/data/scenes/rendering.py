"""Rendering of scene graphs: antialiased shapes on a background, with soft light and shadows.

Shapes are signed distance functions, negative inside. A pixel's coverage is the distance in pixels,
clipped to one pixel: sharp at any size, and fast. Only an object's bounding box is computed.

Within a shape, lengths are in units of its radius, u to the right and v down from its center.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from jaxtyping import Float32, UInt8

from glide_jax.data.scenes.graph import BACKGROUNDS, COLORS, Rgb, Scene, Thing

Plane = Float32[np.ndarray, "h w"]

SECOND_TONE = 0.58
"""Brightness of a texture's marks. Darkening preserves the hue, lightening would not."""
RIM = 0.014
"""Width of the untextured border of an object, which keeps its outline clear."""
SHADING = 0.1
"""Relative brightness of an object's edge towards the light, compared to its center."""
SHADOW_SHIFT, SHADOW_BLUR, SHADOW_DEPTH = 0.14, 0.24, 0.35
"""Displacement and softness of a shadow in radii, and its opacity."""


def render(scene: Scene, size_px: int = 128) -> UInt8[np.ndarray, "h w 3"]:
    """Renders a scene as a square image.

    Args:
        scene: the scene graph.
        size_px: side of the image.

    Returns:
        8-bit sRGB levels.
    """
    image = _background(scene.background, scene.light, size_px).copy()
    for thing in scene.things:
        _add_object(image, thing, scene.light)
    return image


@cache  # a data set has a few dozen backgrounds
def _background(background: str, light: float, size_px: int) -> UInt8[np.ndarray, "h w 3"]:
    """A gradient from a light source near the border."""
    lit, dark = np.array(BACKGROUNDS[background], np.float32)
    x, y = _centers(size_px), _centers(size_px)[:, None]
    distance = _length(x - 0.5 - 0.5 * math.sin(light), y - 0.5 + 0.5 * math.cos(light))
    return (lit + (dark - lit) * (distance[:, :, None] / 1.2) + 0.5).astype(np.uint8)


def _add_object(image: UInt8[np.ndarray, "h w 3"], thing: Thing, light: float) -> None:
    """Adds one object and its shadow to the image, in place."""
    size_px = len(image)
    radius = thing.diameter / 2
    rows, columns = (_span(at, radius, size_px) for at in (thing.y, thing.x))
    # Channels first: NumPy broadcasts a plane over three channels many times faster than three
    # channels over a plane.
    patch = image[rows, columns].transpose(2, 0, 1).astype(np.float32, order="C")
    x = (_centers(size_px)[columns] - thing.x) / radius
    y = (_centers(size_px)[rows, None] - thing.y) / radius
    to_light_x, to_light_y = math.sin(light), -math.cos(light)
    shape = SHAPES[thing.shape]

    shadow = shape(*_turn(x + SHADOW_SHIFT * to_light_x, y + SHADOW_SHIFT * to_light_y, thing))
    patch *= 1 - SHADOW_DEPTH * _inside(shadow / SHADOW_BLUR)

    u, v = _turn(x, y, thing)
    distance = shape(u, v)
    tone = 1 + SHADING * (to_light_x * x + to_light_y * y)
    if thing.texture != "plain":
        marks = TEXTURES[thing.texture](radius * u, radius * v)
        marks = np.maximum(marks, radius * distance + RIM)
        tone *= 1 - (1 - SECOND_TONE) * _inside(size_px * marks)
    color = np.minimum(_planes(COLORS[thing.color]) * tone, 255)
    patch += _inside(radius * size_px * distance) * (color - patch)
    image[rows, columns] = np.stack(tuple((patch + 0.5).astype(np.uint8)), axis=-1)


def _span(center: float, radius: float, size_px: int) -> slice:
    """The pixel range of an object and its shadow along one axis."""
    reach = radius * (1 + SHADOW_SHIFT + SHADOW_BLUR / 2) + 1 / size_px
    return slice(max(0, int((center - reach) * size_px)), int((center + reach) * size_px) + 1)


def _turn(
    x: Float32[np.ndarray, "w"], y: Float32[np.ndarray, "h 1"], thing: Thing
) -> tuple[Plane, Plane]:
    """Rotates image coordinates to the object's axes."""
    cos, sin = math.cos(thing.angle), math.sin(thing.angle)
    return cos * x + sin * y, cos * y - sin * x


@cache
def _centers(size_px: int) -> Float32[np.ndarray, "n"]:
    """Pixel centers in 0..1."""
    return (np.arange(size_px, dtype=np.float32) + 0.5) / size_px


@cache
def _planes(rgb: Rgb) -> Float32[np.ndarray, "3 1 1"]:
    return np.array(rgb, np.float32)[:, None, None]


def _inside(distance: Plane) -> Plane:
    """A pixel's coverage, given its signed distance in pixels."""
    return (0.5 - distance).clip(0, 1)


def _length(x: np.ndarray, y: np.ndarray) -> Plane:
    return np.sqrt(x * x + y * y)  # several times faster than np.hypot


def _circle(u: Plane, v: Plane) -> Plane:
    return _length(u, v) - 0.95


def _box(u: Plane, v: Plane, half_u: float, half_v: float) -> Plane:
    return np.maximum(np.abs(u) - half_u, np.abs(v) - half_v)


def _square(u: Plane, v: Plane) -> Plane:
    return _box(u, v, 0.8, 0.8)


def _cross(u: Plane, v: Plane) -> Plane:
    return np.minimum(_box(u, v, 0.95, 0.36), _box(u, v, 0.36, 0.95))


def _ring(u: Plane, v: Plane) -> Plane:
    return np.abs(_length(u, v) - 0.7) - 0.25


def _triangle(u: Plane, v: Plane) -> Plane:
    """Equilateral, point up, with its centroid slightly below the center of the box."""
    v = v - 0.18
    slanted = math.sqrt(3) / 2 * np.abs(u) - 0.5 * v
    return np.maximum(slanted, v) - 0.57


def _star(u: Plane, v: Plane) -> Plane:
    """Five points. Symmetry folds the plane onto half a point, whose edge is a straight line."""
    tip, notch = 1.05, 0.52
    v = v - 0.05
    fifth = 2 * math.pi / 5
    turn = np.arctan2(u, -v)
    turn = np.abs(turn - fifth * np.round(turn / fifth))
    # The edge runs from (tip, 0) to the notch, a tenth of a turn away.
    along, across = tip - notch * math.cos(math.pi / 5), notch * math.sin(math.pi / 5)
    slope = math.atan2(along, across)
    return _length(u, v) * np.cos(turn - slope) - tip * math.cos(slope)


def _heart(u: Plane, v: Plane) -> Plane:
    """Two round lobes and a wedge below them, tangent to the lobes."""
    lobe, apart = 0.5, 0.46
    cos, sin = math.cos(0.72), math.sin(0.72)
    u, v = np.abs(u) - apart, v + 0.33
    lobes = _length(u, v) - lobe
    outside = cos * u + sin * v - lobe
    before_tangent = sin * u - cos * v
    wedge = np.maximum(np.maximum(outside, before_tangent), -0.1 - v)
    return np.minimum(lobes, wedge)


def _moon(u: Plane, v: Plane) -> Plane:
    """A crescent: a disc minus another one to its upper right."""
    bite = _length(u - 0.85, v + 0.3) - 0.95
    return np.maximum(_circle(u, v), -bite)


SHAPES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "ring": _ring,
    "cross": _cross,
    "moon": _moon,
}


def _stripes(x: Plane, y: Plane) -> Plane:
    period = 0.11
    along = (x + y) * (math.sqrt(0.5) / period)
    return (np.abs(along - np.round(along)) - 0.25) * period


def _dots(x: Plane, y: Plane) -> Plane:
    period = 0.11
    x, y = x / period, y / period
    x, y = x - np.round(x), y - np.round(y)
    return (_length(x, y) - 0.29) * period


def _checks(x: Plane, y: Plane) -> Plane:
    period = 0.16
    x, y = x / period, y / period
    x, y = np.abs(x - np.round(x)) - 0.25, np.abs(y - np.round(y)) - 0.25
    # Inside exactly one of two sets of bands: the sign of the product, the distance of the nearer
    # edge.
    return -np.sign(x * y) * np.minimum(np.abs(x), np.abs(y)) * period


TEXTURES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "striped": _stripes,
    "dotted": _dots,
    "checkered": _checks,
}
"""Signed distances to a pattern's marks. x and y are fractions of the image, so the pattern's scale
does not depend on the object's size and is resolved at 32 px."""
