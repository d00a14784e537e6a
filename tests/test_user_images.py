"""Images and masks of all kinds become squares of the requested size."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from glide_jax import images
from glide_jax.errors import UserError
from glide_jax.sampling.user_images import (
    read_alpha,
    read_image,
    read_mask,
    square_image,
    square_known,
)

FITS = ("crop", "pad", "stretch")
RAMP = np.arange(12 * 20 * 3).reshape(12, 20, 3).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "I;16"])
def test_images_of_every_color_mode_are_read(tmp_path, mode):
    levels = np.full((6, 9), 204, np.uint16) << 8
    image = Image.fromarray(levels) if mode == "I;16" else Image.new("RGB", (9, 6), (204,) * 3)
    image = image if mode == "I;16" else image.convert(mode)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(path)
    decoded = read_image(path)
    assert decoded.shape == (6, 9, 3) and decoded.dtype == np.uint8
    if mode != "1":
        assert np.abs(decoded.astype(int) - 204).max() <= 2


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(tmp_path / "x.gif")[0, 0], (255, 0, 0))


def test_a_very_wide_image_becomes_square(tmp_path):
    Image.new("RGB", (20_000, 30), "red").save(tmp_path / "x.png")
    image = read_image(tmp_path / "x.png")
    for fit in FITS:
        assert square_image(image, 16, fit).shape == (16, 16, 3)


def test_unreadable_files_are_named(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cannot read .*x\.png: not an image"):
        read_image(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"cannot read .*absent\.png: No such file"):
        read_image(tmp_path / "absent.png")
    Image.fromarray(RAMP).save(tmp_path / "x.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "x.png").read_bytes()[:60])
    with pytest.raises(UserError, match=r"cannot read .*cut\.png"):
        read_image(tmp_path / "cut.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"cannot read .*pipe\.png: not a regular file"):
        read_image(tmp_path / "pipe.png")
    monkeypatch.setattr(images, "MAX_DECODED_BYTES", 400)
    with pytest.raises(UserError, match="too many pixels"):
        read_image(tmp_path / "x.png")


def test_masks_are_read_from_white_and_from_alpha(tmp_path):
    known = np.ones((6, 9), bool)
    known[2:4, 3:7] = False
    Image.fromarray((255 * known).astype(np.uint8)).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), known)
    rgba = np.dstack([np.full((6, 9, 3), 9, np.uint8), (255 * known).astype(np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "hole.png")
    np.testing.assert_array_equal(read_alpha(tmp_path / "hole.png"), known)


def test_fits_crop_pad_and_stretch():
    wide = np.zeros((10, 20, 3), np.uint8)
    wide[:, 5:15] = 255  # the middle square
    assert square_image(wide, 10, "crop").min() == 255
    padded = square_image(wide, 20, "pad")
    np.testing.assert_array_equal(padded[5:15], wide)
    assert (padded[:5] == 128).all() and (padded[15:] == 128).all()
    assert square_image(wide, 10, "stretch")[:, 0].max() == 0
    known = square_known(np.ones((10, 20), bool), 20, "pad")
    assert known[5:15].all() and not known[:5].any() and not known[15:].any()


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.sampled_from(FITS), st.randoms()
)
def test_known_pixels_do_not_depend_on_unknown_ones(height, width, side, fit, random):
    """Other values of unknown pixels leave the known pixels of the square unchanged."""
    rng = np.random.default_rng(random.getrandbits(32))
    known = rng.random((height, width)) < 0.9
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    other = np.where(known[..., None], image, 255 - image)
    kept = square_known(known, side, fit)
    a, b = (square_image(p, side, fit).astype(int) for p in (image, other))
    assert np.abs(a - b)[kept].max(initial=0) <= 1  # a rounding step


def test_all_known_pixels_are_kept_and_no_unknown_ones():
    for fit in ("crop", "stretch"):
        assert square_known(np.ones((7, 9), bool), 5, fit).all()
        assert not square_known(np.zeros((7, 9), bool), 5, fit).any()
