"""Images and masks of all kinds become squares of the requested size."""

import os

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from glide_jax import images
from glide_jax.errors import UserError
from glide_jax.sampling.user_images import (
    as_image,
    as_images,
    as_mask,
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


# Arguments of the Python API


def refused(call, *arguments):
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_one_image_of_every_kind_is_the_same(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(RAMP).save(path)
    for image in (
        RAMP,
        jnp.asarray(RAMP),
        RAMP / 255,
        (RAMP / 255).astype(np.float32),
        path,
        str(path),
        Image.fromarray(RAMP),
        Image.open(path),
        np.dstack([RAMP, np.full((12, 20), 255, np.uint8)]),
    ):
        np.testing.assert_array_equal(as_image(image), RAMP)
        np.testing.assert_array_equal(as_images(image), [RAMP])
    gray = RAMP[:, :, 0]
    for image in (gray, gray[:, :, None], gray / 255, Image.fromarray(gray)):
        np.testing.assert_array_equal(as_image(image), np.stack([gray] * 3, -1))
    clear = np.dstack([RAMP, np.zeros((12, 20), np.uint8)])
    np.testing.assert_array_equal(as_image(clear), np.full((12, 20, 3), 255))


def test_a_pillow_image_is_turned_upright_and_stays_unchanged():
    image = Image.fromarray(RAMP)
    image.getexif()[0x0112] = 6
    np.testing.assert_array_equal(as_image(image), np.rot90(RAMP, -1))
    np.testing.assert_array_equal(image, RAMP)
    sixteen_bits = Image.fromarray(RAMP[:, :, 0].astype(np.uint16) * 257)
    sixteen_bits.getexif()[0x0112] = 6
    np.testing.assert_array_equal(as_image(sixteen_bits)[..., 0], np.rot90(RAMP[:, :, 0], -1))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (RAMP / 127.5 - 1, "image: floats must be in [0, 1], but these are -1 to 1"),
        (RAMP.astype(np.float64), "image: floats must be in [0, 1], but these are 0 to 255"),
        (np.full((2, 2, 3), np.nan), "image: floats must be in [0, 1], but these are nan to nan"),
        (np.full((2, 2, 3), np.inf), "image: floats must be in [0, 1], but these are inf to inf"),
        (RAMP.astype(np.int64), "image must be of type uint8 or float, not int64"),
        (RAMP > 3, "image must be of type uint8 or float, not bool"),
        (
            RAMP.transpose(2, 0, 1),
            "image must have shape (h, w, 3), (h, w, 4) or (h, w), not (3, 12,",
        ),
        (RAMP[None], "image must have shape (h, w, 3), (h, w, 4) or (h, w), not (1, 12,"),
        (RAMP[:0], "image is empty: its shape is (0, 20, 3)"),
        (Image.new("RGB", (0, 3)), "image is empty: 0 x 3 pixels"),
        (None, "image must be a file, a Pillow image or an array, not NoneType"),
        ("absent.png", "cannot read absent.png: No such file"),
    ],
)
def test_images_that_are_none_are_refused_by_name(image, message):
    assert refused(as_image, image).startswith(message)


def test_lists_of_images_name_the_wrong_one():
    assert refused(as_images, [RAMP, RAMP[:, :, :0]]).startswith("image 1 is empty")
    assert refused(as_images, []) == "no images: give at least one"
    assert refused(as_images, RAMP[None][:0]) == "no images: give at least one"
    assert refused(as_images, 7).startswith("images must be files")
    assert [image.shape for image in as_images([RAMP, RAMP[:5]])] == [(12, 20, 3), (5, 20, 3)]


def test_one_mask_of_every_kind_is_the_same(tmp_path):
    known = np.arange(54).reshape(6, 9) % 5 > 0
    path, faint = tmp_path / "x.png", tmp_path / "0_1.png"
    Image.fromarray(known).save(path)
    Image.fromarray(known.astype(np.uint8)).save(faint)
    levels = known.astype(np.uint8)
    for mask in (
        known,
        jnp.asarray(known),
        known[:, :, None],
        levels,
        255 * levels,
        known.astype(np.float32),
        known.astype(np.int64),
        path,
        str(faint),
        Image.open(path),
        Image.fromarray(255 * levels),
        Image.fromarray(levels),
    ):
        np.testing.assert_array_equal(as_mask(mask), known)
    assert not as_mask(np.zeros((2, 2), np.uint8)).any()
    assert as_mask(np.ones((2, 2), np.uint8)).all()


def test_masks_of_other_values_are_refused():
    two = "known must be True and False, 0 and 1, or 0 and 255: give mask >= 128"
    for levels in ([[0, 7]], [[1, 255]], [[0.5, 1]], [[np.nan, 1]], [["a", "b"]], [[-1, 0]]):
        assert refused(as_mask, np.array(levels)) == two
    assert refused(as_mask, RAMP).startswith("known must have shape (h, w), not (12, 20, 3)")
    assert refused(as_mask, np.zeros((0, 3), bool)).startswith("known is empty")
