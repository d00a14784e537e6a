"""Image preprocessing."""

import io
import struct
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image, ImageDraw

from glide_jax.data.records import BadRecordError
from glide_jax.data.transforms import decode, load_pixels, to_float


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def quarters() -> Image.Image:
    """Red, green; blue, white."""
    image = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 31, 31), "red")
    draw.rectangle((32, 0, 63, 31), (0, 255, 0))
    draw.rectangle((0, 32, 31, 63), "blue")
    return image


def corners(pixels: np.ndarray) -> list[tuple[int, ...]]:
    """The color of each quarter in row order, rounded to 0 or 1."""
    side = pixels.shape[0]
    near, far = side // 4, side - 1 - side // 4
    return [
        tuple(int(level > 127) for level in pixels[y, x]) for y in (near, far) for x in (near, far)
    ]


R, G, B, W = (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)


def test_to_float_divides_exactly_on_the_host_and_in_a_program() -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    expected = levels.astype(np.float32) / np.float32(127.5) - 1
    assert expected.dtype == np.float32 and expected.min() == -1 and expected.max() == 1
    for image in (to_float(levels), jax.jit(to_float)(levels)):
        np.testing.assert_array_equal(image, expected, strict=True)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
@pytest.mark.parametrize("resolution_px", [8, 32, 64, 80])
def test_all_formats_are_decoded_to_any_size(kind: str, resolution_px: int) -> None:
    pixels = load_pixels(encode(quarters(), kind), resolution_px)
    assert pixels.shape == (resolution_px, resolution_px, 3)
    assert corners(pixels) == [R, G, B, W]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"])
def test_all_color_modes_preserve_gray_levels(mode: str) -> None:
    """A gray level is preserved. 16-bit levels are scaled rather than clipped."""
    level = 255 if mode == "1" else 200
    if mode in ("I;16", "I"):
        image = Image.fromarray(np.full((16, 16), level * 257, np.uint16)).convert(mode)
    else:
        gray = Image.new("RGB", (16, 16), (level,) * 3)
        image = gray.convert(mode, palette=Image.Palette.ADAPTIVE)
    kinds = {"PNG": ("1", "L", "P", "I;16"), "JPEG": ("CMYK", "YCbCr"), "TIFF": ("LAB", "I", "F")}
    (kind,) = (kind for kind, modes in kinds.items() if mode in modes)
    pixels = load_pixels(encode(image, kind), 8)
    np.testing.assert_allclose(pixels, level, atol=3)


def tiff(entries: dict[int, int | tuple[int, int]], pixels: bytes, width: int) -> bytes:
    """A TIFF file of one row, little-endian, of modes that Pillow cannot write."""
    entries = {256: width, 257: 1, 259: 1, 277: 1, 278: 1, 279: len(pixels)} | entries
    entries[273] = 8 + 2 + 12 * (len(entries) + 1) + 4
    fields = b""
    for tag, value in sorted(entries.items()):
        pair = value if isinstance(value, tuple) else (value, 0)
        fields += struct.pack("<HHIHH", tag, 3, 1 + isinstance(value, tuple), *pair)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    return head + fields + bytes(4) + pixels


def gray_tiff(levels: np.ndarray, **options: Any) -> bytes:
    return encode(Image.fromarray(levels), "TIFF", **options)


TWELVE_BITS = bytes([0x80, 0x0F, 0xFF])  # 0x800 and 0xFFF


@pytest.mark.parametrize(
    ("encoded", "levels"),
    [
        (gray_tiff(np.array([[0, 200]], np.int32)), (0, 200)),
        (gray_tiff(np.array([[0, 200 * 257]], np.int32)), (0, 200)),
        (gray_tiff(np.array([[0, 200 / 255]], np.float32)), (0, 200)),
        (gray_tiff(np.array([[0, 200]], np.float32)), (0, 200)),
        (gray_tiff(np.array([[0, 200 * 257]], np.uint16), tiffinfo={262: 0}), (255, 55)),
        (tiff({258: 12, 262: 1}, TWELVE_BITS, 2), (128, 255)),
        (tiff({258: (8, 8), 262: 1, 277: 2, 338: 1}, bytes([9, 255, 0, 0]), 2), (9, 255)),
        (encode(Image.fromarray(np.array([[9, 65535]], np.uint16)), transparency=9), (255, 255)),
    ],
    ids=[
        "I of 8 bits",
        "I of 16 bits",
        "F to 1",
        "F to 255",
        "white is 0",
        "12 bits",
        "La",
        "tRNS",
    ],
)
def test_gray_levels_of_every_range_are_converted(encoded: bytes, levels: tuple[int, int]) -> None:
    """Also over white: the second pixel of La and the first of tRNS are transparent."""
    np.testing.assert_array_equal(np.asarray(decode(encoded))[0, :, 0], levels)


@pytest.mark.parametrize(
    "levels",
    [
        np.array([[0, 2**31]], np.uint32),
        np.array([[0, 70_000]], np.int32),
        np.array([[-5, 100]], np.int16),
        np.array([[0, 300]], np.float32),
        np.array([[-0.1, 1]], np.float32),
        np.array([[np.nan, 1]], np.float32),
    ],
)
def test_gray_levels_of_an_unknown_range_are_named(levels: np.ndarray) -> None:
    with pytest.raises(BadRecordError, match="the range of its gray levels is unknown"):
        load_pixels(gray_tiff(levels), 8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(mode: str) -> None:
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 8, 16))
    pixels = load_pixels(encode(image.convert(mode)), 16)
    assert pixels[:, :7].max() <= 1
    assert pixels[:, 9:].min() >= 254


@pytest.mark.parametrize(
    ("orientation", "stored_as"),
    [
        (1, None),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (6, Image.Transpose.ROTATE_90),
        (8, Image.Transpose.ROTATE_270),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_exif_orientation_is_applied(
    orientation: int, stored_as: Image.Transpose | None, kind: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = quarters() if stored_as is None else quarters().transpose(stored_as)
    assert corners(load_pixels(encode(image, kind, exif=exif), 16)) == [R, G, B, W]


def test_the_center_square_is_resized() -> None:
    wide = Image.new("RGB", (96, 32), "black")
    wide.paste((255, 255, 255), (32, 0, 64, 32))
    for image in (wide, wide.transpose(Image.Transpose.ROTATE_90)):
        pixels = load_pixels(encode(image), 16)
        assert pixels[1:-1, 1:-1].min() == 255
        assert pixels.min() > 200  # the filter extends slightly beyond the crop


def test_random_crops_cover_the_image_and_depend_only_on_the_generator() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    encoded = encode(Image.fromarray(ramp))

    def crop(seed: int) -> np.ndarray:
        return load_pixels(encoded, 16, np.random.default_rng(seed), crop="random")

    np.testing.assert_array_equal(crop(0), crop(0))
    means = [crop(seed).mean() for seed in range(200)]
    assert 30 < min(means) < 45
    assert 210 < max(means) < 225
    assert abs(np.mean(means) - 127.5) < 15


def test_half_of_the_images_are_flipped() -> None:
    encoded = encode(quarters())
    mirrored = [
        corners(load_pixels(encoded, 8, np.random.default_rng(seed), horizontal_flip=True))
        == [G, R, W, B]
        for seed in range(200)
    ]
    assert 70 < sum(mirrored) < 130
    with pytest.raises(ValueError, match="needs rng"):
        load_pixels(encoded, 8, crop="random")


def test_downsampling_does_not_alias() -> None:
    """Stripes below pixel size average out, also in files decoded at a reduced size."""
    stripes = Image.fromarray(np.tile(np.array([[0, 255]], np.uint8), (256, 128)))
    for kind in ("PNG", "JPEG"):
        pixels = load_pixels(encode(stripes, kind), 16)
        np.testing.assert_allclose(pixels, 127.5, atol=3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_broken_files_are_bad_records(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    encoded = encode(Image.fromarray(noise), kind)
    load_pixels(encoded, 16)
    for broken in (encoded[: len(encoded) // 2], encoded[:20], b"", b"no image at all"):
        with pytest.raises(BadRecordError, match=r"^dogs/x: .*(image|empty)"):
            load_pixels(broken, 16, name="dogs/x")
