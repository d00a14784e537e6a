"""What `prepare` does to one image: the same for worker processes and for Apache Beam.

A record is judged (captions, size, shape), decoded whole, made smaller if it is larger than asked
for, and becomes a tf.Example under the digest of its original bytes, by which duplicates are found.
"""

import dataclasses
import hashlib
import io
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from PIL import Image

from glide_jax.data.records import BadRecordError, Record
from glide_jax.data.transforms import decode
from glide_jax.errors import UserError

DIGEST_BYTES = 16
KEPT_FORMATS = ("JPEG", "PNG", "WEBP")
"""Files of other formats are encoded again even where they need not be made smaller."""

REASONS = {
    "captions": "no caption of the asked length",
    "too_small": "shorter side below --min-px",
    "too_long": "longer side above --max-aspect times the shorter",
    "duplicate": "the same file again",
    "broken": "cannot be used: named in broken.txt",
}
"""Why records are dropped, in the order in which it is found out; duplicates come last."""


@dataclass(frozen=True)
class Selection:
    """Which images are kept, and how large."""

    px: int = 256
    """Shorter side of the images that are written; smaller ones stay as they are."""
    min_px: int | None = None
    """Leave out images whose shorter side is below this; as --px unless given. 0: none."""
    max_aspect: float = 0.0
    """Leave out images whose longer side is more than so many times the shorter. 0: none."""
    min_caption_chars: int = 1
    """Leave out captions of fewer characters, and images that have no other."""
    max_caption_chars: int = 0
    """Leave out captions of more characters, likewise. 0: none."""
    quality: int = 92
    """Of JPEG, for images made smaller; others keep their bytes."""

    def __post_init__(self) -> None:
        for ok, flag, why in (
            (self.px >= 1, "px", "at least 1"),
            (self.min_px is None or self.min_px >= 0, "min-px", "at least 0"),
            (not self.max_aspect or self.max_aspect >= 1, "max-aspect", "at least 1, or 0"),
            (self.min_caption_chars >= 1, "min-caption-chars", "at least 1"),
            (
                not self.max_caption_chars or self.max_caption_chars >= self.min_caption_chars,
                "max-caption-chars",
                "at least --min-caption-chars, or 0",
            ),
            (1 <= self.quality <= 100, "quality", "in 1..100"),
        ):
            if not ok:
                raise UserError(f"--{flag} must be {why}")


@dataclass
class Tally:
    """What became of the records of a unit, or of many."""

    read: int = 0
    bytes_read: int = 0
    """Of images."""
    dropped: Counter[str] = field(default_factory=Counter)
    """By the keys of REASONS."""
    problems: list[str] = field(default_factory=list)
    """What is wrong with each broken record."""
    seconds: float = 0.0
    """Of processor time, for reading and judging."""

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in _TALLY_FIELDS))


_TALLY_FIELDS = dataclasses.fields(Tally)


class Kept(NamedTuple):
    """An image to write."""

    digest: bytes
    """Of the original file."""
    image: bytes
    captions: tuple[str, ...]
    name: str


def select(
    records: Iterable[Record | BadRecordError], settings: Selection, tally: Tally
) -> Iterator[Kept]:
    """The records to keep, ready to write, duplicates among them; the others are counted.

    Args:
        records: of a unit.
        settings: which are kept.
        tally: is added to.
    """
    start = time.thread_time()
    for record in records:
        kept = _judged(record, settings, tally)
        tally.seconds += time.thread_time() - start
        if kept is not None:
            yield kept
        start = time.thread_time()


class _DroppedError(Exception):
    """The record is fine but not asked for; the message is a key of REASONS."""


def _judged(record: Record | BadRecordError, settings: Selection, tally: Tally) -> Kept | None:
    tally.read += 1
    try:
        if isinstance(record, BadRecordError):
            raise record
        tally.bytes_read += len(record.image)
        return _kept(record, settings)
    except BadRecordError as error:
        tally.dropped["broken"] += 1
        tally.problems.append(str(error))
    except _DroppedError as error:
        tally.dropped[str(error)] += 1
    return None


def _kept(record: Record, settings: Selection) -> Kept:
    least, most = settings.min_caption_chars, settings.max_caption_chars or sys.maxsize
    captions = tuple(text for text in record.captions if least <= len(text) <= most)
    if not captions:
        raise _DroppedError("captions")
    # Of malformed files Pillow's decoders raise nearly any exception there is.
    try:
        with Image.open(io.BytesIO(record.image)) as header:
            size, kind = header.size, header.format
    except Exception:
        what = "not an image that Pillow can read" if record.image else "the file is empty"
        raise BadRecordError(f"{record.name}: {what}") from None
    if min(size) < (settings.px if settings.min_px is None else settings.min_px):
        raise _DroppedError("too_small")
    if settings.max_aspect and max(size) > settings.max_aspect * min(size):
        raise _DroppedError("too_long")
    try:
        image = decode(record.image, 2 * settings.px)
    except Exception as error:
        raise BadRecordError(f"{record.name}: cannot decode the image ({error})") from None
    encoded = record.image
    if min(size) > settings.px or kind not in KEPT_FORMATS:
        encoded = _encode(_resized(image, settings.px), settings.quality)
    digest = hashlib.blake2b(record.image, digest_size=DIGEST_BYTES).digest()
    return Kept(digest, encoded, captions, record.name)


def _resized(image: Image.Image, px: int) -> Image.Image:
    shorter = min(image.size)
    if shorter <= px:
        return image
    width, height = (max(px, round(side * px / shorter)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _encode(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()
