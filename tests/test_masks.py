"""Inpainting masks: areas, frequencies, scale invariance and location phrases."""

import io
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from glide_jax.config import MaskConfig
from glide_jax.data.masks import place, random_mask, with_place

KINDS = ("rectangle", "brush", "half_plane", "full")
seeds = st.integers(0, 2**32)


def only(kind):
    return MaskConfig(**{name: float(name == kind) for name in KINDS})


def hidden(seed, size_px, config):
    return ~random_mask(np.random.default_rng(seed), size_px, config)[:, :, 0]


def block(top, bottom, left, right):
    """A 20 px mask that hides these rows and columns."""
    mask = np.ones((20, 20, 1), bool)
    mask[top:bottom, left:right] = False
    return mask


@given(seeds, st.integers(1, 70), st.sampled_from([*map(only, KINDS), MaskConfig()]))
def test_masks_always_hide_a_pixel(seed, size_px, config):
    mask = random_mask(np.random.default_rng(seed), size_px, config)
    assert mask.shape == (size_px, size_px, 1) and mask.dtype == bool
    assert not mask.all()


def test_hidden_areas_are_in_range():
    areas = {kind: [hidden(i, 128, only(kind)).mean() for i in range(1000)] for kind in KINDS}
    # Tolerance: half a pixel along each edge, 1/64 of the side.
    assert 0.03 < min(areas["rectangle"]) < 0.08 and 0.55 < max(areas["rectangle"]) < 0.63
    assert 0.19 < min(areas["half_plane"]) < 0.22 and 0.78 < max(areas["half_plane"]) < 0.81
    assert min(areas["full"]) == 1
    # Strokes overlap randomly: at least 90% of the areas are in the intended range.
    brush = np.array(areas["brush"])
    assert brush.min() > 0.03 and brush.max() < 0.65
    assert ((brush > 0.05) & (brush < 0.5)).mean() > 0.9
    for kind in ("rectangle", "brush", "half_plane"):  # areas are spread out
        assert np.std(areas[kind]) > 0.1


@given(seeds)
def test_rectangles_have_a_bounded_aspect_ratio(seed):
    found = hidden(seed, 256, only("rectangle"))
    h, w = found.any(1).sum(), found.any(0).sum()
    assert found.sum() == h * w
    assert 1 / 3 - 0.03 < h / w < 3.2  # tolerance: one pixel of the short side of at least 33 px


def test_rectangles_reach_everywhere():
    frequency = np.mean([hidden(i, 32, only("rectangle")) for i in range(2000)], axis=0)
    assert frequency.min() > 0  # the corners
    # Symmetric within five standard errors.
    for axis in (0, 1):
        np.testing.assert_allclose(
            frequency, np.flip(frequency, axis), atol=5 * np.sqrt(0.5 / 2000)
        )


@given(seeds)
def test_half_planes_are_bounded_by_a_straight_line(seed):
    """Each row and column has at most one transition between known and hidden pixels."""
    found = hidden(seed, 64, only("half_plane"))
    for lines in (found, found.T):
        assert (np.diff(lines, axis=1).sum(1) <= 1).all()
        lengths = lines.sum(1)
        inside = lengths[(lengths > 0) & (lengths < 64)]
        # The steps of a straight edge differ by at most one pixel.
        assert len(inside) < 3 or np.ptp(np.diff(inside)) <= 1


@given(seeds)
def test_brush_strokes_are_connected_thick_and_few(seed):
    found = hidden(seed, 64, only("brush"))
    assert components(found) <= 4
    # Thick: apart from the tips of round ends, pixels are in 3 px blocks, which may extend beyond
    # the border. The narrowest brush, 0.08 sides, has 5 px.
    padded = np.pad(found, 2, mode="edge")
    offsets = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    eroded = np.all([np.roll(padded, offset, (0, 1)) for offset in offsets], axis=0)
    opened = np.any([np.roll(eroded, offset, (0, 1)) for offset in offsets], axis=0)
    assert (found & ~opened[2:-2, 2:-2]).sum() < 0.1 * found.sum()


def components(found):
    """Number of connected regions, with diagonal connections."""
    left, count = {tuple(at) for at in np.argwhere(found).tolist()}, 0
    while left:
        todo, count = [left.pop()], count + 1
        while todo:
            y, x = todo.pop()
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            todo += near
    return count


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_the_same_at_every_size(kind):
    """A downsampled large mask equals the small mask except for pixels on edges."""
    wrong = 0
    for seed in range(100):
        small, large = (hidden(seed, size_px, only(kind)) for size_px in (32, 128))
        fraction = large.reshape(32, 4, 32, 4).mean((1, 3))
        wrong += ((fraction == 0) & small).sum() + ((fraction == 1) & ~small).sum()
        # An edge crosses up to 4 pixels per row and covers a quarter of each on average.
        assert np.abs(small - fraction).mean() < 0.08
    # Pillow rounds strokes to pixels of the canvas, here a ninth of the image's pixels.
    assert wrong <= (5 if kind == "brush" else 0)


def test_kinds_have_their_configured_frequencies():
    config = MaskConfig(rectangle=3.0, brush=0.0, half_plane=0.0, full=1.0)
    whole = np.mean([hidden(i, 16, config).all() for i in range(4000)])
    assert abs(whole - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000)  # five standard errors


@given(seeds)
def test_a_seed_determines_the_mask(seed):
    first, again = (hidden(seed, 64, MaskConfig()) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_masks_are_cheaper_than_decoding():
    """A mask costs less than decoding six 128 px images. Minimum of five runs on a busy machine.

    The time to decode larger images depends on the state of the memory allocator.
    """
    image = Image.effect_mandelbrot((128, 128), (-2, -1.5, 1, 1.5), 100).convert("RGB")
    image.save(jpeg := io.BytesIO(), "JPEG")

    def process_s(work: Callable[[int], object]) -> float:
        start = time.process_time()
        for i in range(100):
            work(i)
        return time.process_time() - start

    mask_s = min(process_s(lambda i: hidden(i, 64, MaskConfig())) for _ in range(5))
    image_s = min(process_s(lambda i: np.asarray(Image.open(jpeg))) for _ in range(5))
    assert mask_s < 6 * image_s


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (block(0, 8, 0, 8), "at the top left"),
        (block(0, 8, 5, 15), "at the top"),
        (block(0, 8, 12, 20), "at the top right"),
        (block(5, 15, 0, 8), "on the left"),
        (block(5, 15, 5, 15), "in the middle"),
        (block(0, 20, 10, 20), "on the right"),
        (block(12, 20, 0, 8), "at the bottom left"),
        (block(10, 20, 0, 20), "at the bottom"),
        (block(18, 20, 18, 20), "at the bottom right"),
        (block(2, 18, 2, 17), "in the middle"),  # 60%
        (block(4, 16, 0, 20), "in the middle"),  # a band
        (block(0, 20, 0, 20), ""),
        (block(0, 20, 0, 13), ""),  # 65%
        (block(0, 0, 0, 0), ""),
        (~block(3, 17, 3, 17), ""),  # a frame
        (block(0, 20, 0, 4) & block(0, 20, 16, 20), ""),  # two sides
    ],
)
def test_hand_made_masks_have_the_expected_location(mask, expected):
    assert place(mask) == expected
    assert with_place("a red circle", mask) == (
        f"a red circle, {expected}" if expected else "a red circle"
    )
    assert with_place("", mask) == ""


@given(seeds)
def test_a_flipped_mask_has_the_flipped_location(seed):
    mask = random_mask(np.random.default_rng(seed), 64, MaskConfig())
    swapped = place(mask).replace("left", "x").replace("right", "left").replace("x", "right")
    assert place(mask[:, ::-1]) == swapped
    swapped = place(mask).replace("top", "x").replace("bottom", "top").replace("x", "bottom")
    assert place(mask[::-1]) == swapped


@given(st.integers(1, 20), st.integers(1, 20), st.data())
def test_rectangles_have_the_location_of_their_center(height, width, data):
    top, left = data.draw(st.integers(0, 20 - height)), data.draw(st.integers(0, 20 - width))
    where = place(block(top, top + height, left, left + width))
    assert bool(where) == (height * width <= 240)
    y, x = top + height / 2, left + width / 2
    assume(where and not {x, y} & {8, 12})  # on the border between two locations
    assert ("top" in where, "bottom" in where) == (y < 8, y > 12)
    assert ("left" in where, "right" in where) == (x < 8, x > 12)


def test_all_locations_occur():
    masks = (random_mask(np.random.default_rng(i), 32, MaskConfig()) for i in range(2000))
    assert len(Counter(map(place, masks))) == 10
