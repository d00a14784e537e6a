"""Rendering of scenes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glide_jax.data.scenes import rendering
from glide_jax.data.scenes.graph import COLORS, SHAPES, SPLITS, TEXTURES, Scene, Thing, make
from glide_jax.data.scenes.rendering import render

records = st.tuples(st.sampled_from(SPLITS), st.integers(0, 10**6))


def single(shape: str, texture: str = "plain", angle: float = 0.0) -> Scene:
    """A large red object in the center of a dark background."""
    thing = Thing(shape, "red", "large", texture, 0.5, 0.5, 0.4, angle)
    return Scene("night", 0.0, (thing,))


def red_fraction(scene: Scene, size_px: int = 512) -> float:
    """Fraction of pixels that are closer to red than to the background."""
    image = render(scene, size_px).astype(int)
    return float(np.mean(image[..., 0] - image[..., 1] > 100))


def test_every_shape_and_texture_can_be_rendered():
    assert set(rendering.SHAPES) == set(SHAPES)
    assert {"plain", *rendering.TEXTURES} == set(TEXTURES)


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", math.pi * 0.95**2),
        ("ring", math.pi * (0.95**2 - 0.45**2)),
        ("square", 1.6**2),
        ("cross", 4 * (2 * 0.95 * 0.36 - 0.36**2)),
        ("triangle", 3 * math.sqrt(3) * 0.57**2),
        ("star", 10 * 0.5 * 1.05 * 0.52 * math.sin(math.pi / 5)),
    ],
)
@pytest.mark.parametrize("angle", [0.0, 0.2])
def test_a_shape_covers_its_area(shape, area, angle):
    radius = 0.2
    assert red_fraction(single(shape, angle=angle)) == pytest.approx(area * radius**2, rel=0.02)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("texture", TEXTURES)
def test_a_texture_darkens_only_the_inside(shape, texture):
    plain, textured = (render(single(shape, t), 256).astype(int) for t in ("plain", texture))
    darker = np.any(textured < plain, axis=-1)
    outline = plain[..., 0] - plain[..., 1] > 100
    assert not np.any(textured > plain)
    assert not np.any(darker & ~outline)
    if texture != "plain":
        assert 0.1 < darker.sum() / outline.sum() < 0.6


@settings(max_examples=30)
@given(records)
def test_a_small_image_is_the_average_of_a_large_one(record):
    scene, _ = make(*record)
    small = render(scene, 32).astype(float)
    large = render(scene, 256).astype(float).reshape(32, 8, 32, 8, 3).mean((1, 3))
    assert np.abs(small - large).mean() < 2
    assert np.abs(small - large).max() < 100


@settings(max_examples=30)
@given(records)
def test_objects_have_their_color_and_do_not_touch_the_border(record):
    scene, _ = make(*record)
    image = render(scene, 128)
    assert image.shape == (128, 128, 3) and image.dtype == np.uint8
    for thing in scene.things:
        wanted = np.array(COLORS[thing.color])
        distance = np.abs(image.astype(int) - wanted).sum(-1)
        assert np.mean(distance < 60) > 0.005
    muted = image.max(-1).astype(int) - image.min(-1)
    border = np.concatenate([muted[0], muted[-1], muted[:, 0], muted[:, -1]])
    assert border.max() < 60


def test_rendering_is_repeatable_and_does_not_change_the_background():
    scene = single("heart", "dotted")
    before = render(scene)
    render(single("circle"))
    np.testing.assert_array_equal(render(scene), before)
