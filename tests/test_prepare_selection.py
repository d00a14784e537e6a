"""Filtering and resizing of images by `prepare`."""

import io

import pytest
from helpers.packed_images import image
from PIL import Image

from glide_jax.data.records import BadRecordError, Record
from glide_jax.errors import UserError
from glide_jax.prepare.selection import REASONS, Kept, Selection, Tally, select


def record(image: bytes, *captions: str) -> Record:
    return Record(image, captions or ("an image",), "x")


def selected(settings: Selection, *records: Record | BadRecordError) -> tuple[list[Kept], Tally]:
    tally = Tally()
    return list(select(records, settings, tally)), tally


def size(image: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(image)).size


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_only_larger_images_are_resized(kind: str) -> None:
    larger, fitting = image(0, 80, 60, kind), image(1, 40, 30, kind)
    (first, second), tally = selected(Selection(px=30), record(larger), record(fitting))
    assert size(first.image) == (40, 30)
    assert Image.open(io.BytesIO(first.image)).format == "JPEG"
    assert second.image == fitting
    assert (tally.read, tally.bytes_read, sum(tally.dropped.values())) == (
        2,
        len(larger) + len(fitting),
        0,
    )


def test_other_formats_are_encoded_again() -> None:
    (kept,), _ = selected(Selection(px=30), record(image(0, 40, 30, "BMP")))
    assert Image.open(io.BytesIO(kept.image)).format == "JPEG"
    assert size(kept.image) == (40, 30)


def test_transparency_and_orientation_are_applied() -> None:
    plain = io.BytesIO()
    Image.new("RGBA", (300, 200), (200, 100, 50, 0)).save(plain, "PNG")  # transparent: white
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (300, 200), (200, 100, 50)).save(turned, "JPEG", exif=exif)
    (white, upright), _ = selected(
        Selection(px=100), record(plain.getvalue()), record(turned.getvalue())
    )
    assert Image.open(io.BytesIO(white.image)).getpixel((5, 5)) == (255, 255, 255)
    assert size(upright.image) == (100, 150)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (Selection(px=31), "too_small"),
        (Selection(px=8, min_px=31), "too_small"),
        (Selection(px=8, max_aspect=1.3), "too_long"),
        (Selection(px=8, min_caption_chars=10), "captions"),
        (Selection(px=8, max_caption_chars=7), "captions"),
    ],
)
def test_dropped_images_are_counted_by_reason(settings: Selection, reason: str) -> None:
    kept, tally = selected(settings, record(image(0, 40, 30)))
    assert not kept
    assert reason in REASONS
    assert tally.dropped == {reason: 1}


def test_images_exactly_at_the_limits_are_kept() -> None:
    settings = Selection(
        px=64, min_px=30, max_aspect=4 / 3, min_caption_chars=8, max_caption_chars=8
    )
    (kept,), _ = selected(settings, record(image(0, 40, 30), "an image", "short", "far too long"))
    assert kept.captions == ("an image",)
    assert len(selected(Selection(px=64, min_px=0), record(image(0, 2, 2)))[0]) == 1


def test_broken_images_are_named() -> None:
    complete = image(0, 400, 300, "JPEG")
    records = [record(b""), record(b"no image"), record(complete[: len(complete) // 2])]
    kept, tally = selected(Selection(px=30), *records, BadRecordError("y: no caption"))
    assert not kept
    assert (tally.read, tally.dropped) == (4, {"broken": 4})
    for problem, why in zip(
        tally.problems,
        ("x: the file is empty", "x: not an image", "x: cannot decode the image", "y: no caption"),
        strict=True,
    ):
        assert problem.startswith(why)


def test_the_digest_is_of_the_original_bytes() -> None:
    one, same, other = (image(number, 80, 60) for number in (0, 0, 1))
    (a, b, c), _ = selected(Selection(px=30), record(one, "a"), record(same, "b"), record(other))
    assert a.digest == b.digest != c.digest


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"px": 0}, "--px must be at least 1"),
        ({"min_px": -1}, "--min-px must be at least 0"),
        ({"max_aspect": 0.5}, "--max-aspect must be at least 1, or 0"),
        ({"min_caption_chars": 0}, "--min-caption-chars must be at least 1"),
        ({"min_caption_chars": 9, "max_caption_chars": 8}, "--max-caption-chars must be at least"),
        ({"quality": 101}, "--quality must be in 1..100"),
    ],
)
def test_invalid_settings_are_refused(changes: dict[str, float], line: str) -> None:
    with pytest.raises(UserError, match=line):
        Selection(**changes)
