"""Opening and output of images."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import glide_jax
from glide_jax import images
from glide_jax.errors import UserError
from glide_jax.images import (
    draw_grid,
    open_image,
    resized,
    save_png,
    to_pil,
    to_uint8,
    upright,
)

RAMP = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def encode(kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(RAMP).save(file, kind, **options)
    return file.getvalue()


def chunk(kind, content):
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_raster_formats_are_opened(kind):
    assert open_image(encode(kind)).size == (6, 4)


@pytest.mark.parametrize("kind", ["EPS", "PCX", "TGA", "ICO", "PPM"])
def test_other_formats_of_pillow_are_not_opened(kind):
    """Pillow starts Ghostscript for an EPS, whatever the file is called."""
    encoded = encode(kind)
    assert Image.open(io.BytesIO(encoded)).format == kind
    with pytest.raises(Image.UnidentifiedImageError):
        open_image(encoded)


def test_every_image_is_opened_in_one_place():
    for file in Path(glide_jax.__file__).parent.rglob("*.py"):
        assert file.name == "images.py" or "Image.open(" not in file.read_text(), file


def test_the_limit_on_pixels_is_checked_before_decoding(monkeypatch):
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    bomb = encode()[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", b"x")
    with pytest.raises(Image.DecompressionBombError, match="the limit is 134 megapixels"):
        open_image(bomb)
    monkeypatch.setattr(images, "MAX_DECODED_BYTES", 4 * 4 * 6 - 1)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        with pytest.raises(Image.DecompressionBombError):
            open_image(encode(kind))


def test_long_texts_and_color_profiles_do_not_lose_the_pixels():
    long = zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1))
    texts = (
        chunk(b"zTXt", b"a\0\0" + long),
        chunk(b"iTXt", b"b\0\1\0en\0b\0" + long),
        chunk(b"iCCP", b"c\0\0" + long),
    )
    good = encode(exif=_rotated())
    header, rest = good[:33], good[33:]
    for text in texts:
        with pytest.raises(ValueError, match="too large"):
            Image.open(io.BytesIO(header + text + rest)).load()
    # Also after the pixels.
    for encoded in (header + b"".join(texts) + rest, good[:-12] + texts[0] + good[-12:]):
        image = upright(open_image(encoded))
        np.testing.assert_array_equal(np.asarray(image), RAMP[::-1, ::-1])
        assert image.text == {}
    short = header + chunk(b"zTXt", b"a\0\0" + zlib.compress(b"kept")) + rest
    assert open_image(short).text == {"a": "kept"}
    cut = header + texts[0][:20]
    with pytest.raises(Exception, match=r"(?i)truncated|cannot identify|broken"):
        open_image(cut).load()


def _rotated():
    exif = Image.Exif()
    exif[0x0112] = 3
    return exif


def test_unreadable_exif_does_not_lose_the_pixels():
    image = upright(open_image(encode(exif=b"Exif\0\0no TIFF header")))
    np.testing.assert_array_equal(np.asarray(image), RAMP)


def test_levels_round_to_the_nearest_and_clip():
    images = np.array([-2, -1, -1 + 1.4 / 127.5, 0, 1, 3], np.float32).reshape(1, 1, 2, 3)
    assert to_uint8(images).ravel().tolist() == [0, 0, 1, 128, 255, 255]
    levels = np.arange(255, dtype=np.uint8).reshape(1, 5, 17, 3)
    np.testing.assert_array_equal(to_uint8(levels.astype(np.float32) / 127.5 - 1), levels)


def test_a_png_keeps_its_metadata(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    save_png(tmp_path / "new" / "x.png", image, {"prompt": "ein Löwe 🦁", "mask": None})
    with Image.open(tmp_path / "new" / "x.png") as file:
        assert file.text == {"prompt": "ein Löwe 🦁"}
        np.testing.assert_array_equal(np.asarray(file), image)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save_png(tmp_path / "file" / "x.png", image)


def test_a_grid_has_every_image_with_its_caption():
    images = np.stack([np.full((8, 8, 3), level, np.uint8) for level in (50, 100, 150)])
    grid = draw_grid(images, ["one", "two", "two"], columns=2)
    assert {50, 100, 150} <= set(np.unique(grid[..., 0]))
    row_1, row_2 = grid[: len(grid) // 2], grid[len(grid) // 2 :]
    assert (row_1[..., 0] < 40).any()  # black letters
    assert (row_2[..., 0] < 40).any()  # the caption is repeated in a new row


def test_images_are_resized_with_the_given_filter():
    images = np.stack([np.full((4, 4, 3), level, np.uint8) for level in (10, 20)])
    images[:, :2, :2] += 40
    small = resized(images, 2, Image.Resampling.BOX)
    assert small[:, :, :, 0].tolist() == [[[50, 10], [10, 10]], [[60, 20], [20, 20]]]
    np.testing.assert_array_equal(resized(small, 4, Image.Resampling.NEAREST), images)


def test_pil_images_have_the_same_levels():
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    opened = to_pil(images)
    assert [image.size for image in opened] == [(5, 4)] * 2
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in opened]), images)
