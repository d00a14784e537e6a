"""Filtering and resizing of single images, for worker processes and for Apache Beam.

A record is checked (captions, size, aspect ratio), decoded completely and resized if it is larger
than --px. Duplicates are detected by the digest of the original file.
"""

import dataclasses
import hashlib
import io
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

from PIL import Image

from glide_jax.config.bounds import Between
from glide_jax.data.records import BadRecordError, Record
from glide_jax.data.transforms import decode
from glide_jax.errors import UserError
from glide_jax.images import NOT_AN_IMAGE, open_image

DIGEST_BYTES = 16
KEPT_FORMATS = ("JPEG", "PNG", "WEBP")
"""Files of other formats are always encoded again."""

REASONS = {
    "captions": "no caption of the required length",
    "too_small": "shorter side below --min-px",
    "too_long": "aspect ratio above --max-aspect",
    "duplicate": "the same file as an earlier image",
    "broken": "unreadable, listed in broken.txt",
}
"""Reasons to drop a record, with their descriptions."""


@dataclass(frozen=True)
class Selection:
    """Filters and size of the images."""

    px: Annotated[int, Between(1, 2**15)] = 256
    """Shorter side of the output. Larger images are resized, smaller ones are unchanged."""
    min_px: Annotated[int | None, Between(0, 2**15)] = None
    """Minimum shorter side. Smaller images are dropped. Default: --px. 0: no limit."""
    max_aspect: Annotated[float, Between(0, 10**6)] = 0.0
    """Maximum aspect ratio (longer/shorter side). Other images are dropped. 0: no limit."""
    min_caption_chars: Annotated[int, Between(1, 10**6)] = 1
    """Minimum characters of a caption. Shorter captions are dropped."""
    max_caption_chars: Annotated[int, Between(0, 10**9)] = 0
    """Maximum characters of a caption. Longer captions are dropped. 0: no limit."""
    quality: Annotated[int, Between(1, 100)] = 92
    """JPEG quality of resized images. Other images keep their original bytes."""

    def __post_init__(self) -> None:
        for ok, flag, requirement in (
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
                raise UserError(f"--{flag} must be {requirement}")


@dataclass
class Tally:
    """Record counts of one or more units."""

    read: int = 0
    bytes_read: int = 0
    """Bytes of encoded images."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Counts by the keys of REASONS."""
    problems: list[str] = field(default_factory=list)
    """One message per broken record."""
    seconds: float = 0.0
    """CPU time for reading, filtering and resizing."""

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in _TALLY_FIELDS))


_TALLY_FIELDS = dataclasses.fields(Tally)


class Kept(NamedTuple):
    """A record to write."""

    digest: bytes
    """Digest of the original file."""
    image: bytes
    captions: tuple[str, ...]
    name: str


def select(
    records: Iterable[Record | BadRecordError], settings: Selection, tally: Tally
) -> Iterator[Kept]:
    """Filters and resizes records. Duplicates are kept at this point.

    Args:
        records: the records of a unit.
        settings: filters and size.
        tally: updated in place.
    """
    start = time.thread_time()
    for record in records:
        kept = _counted(record, settings, tally)
        tally.seconds += time.thread_time() - start
        if kept is not None:
            yield kept
        start = time.thread_time()


class _DroppedError(Exception):
    """The record does not pass a filter. The message is a key of REASONS."""


def _counted(record: Record | BadRecordError, settings: Selection, tally: Tally) -> Kept | None:
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
    low, high = settings.min_caption_chars, settings.max_caption_chars or sys.maxsize
    captions = tuple(text for text in record.captions if low <= len(text) <= high)
    if not captions:
        raise _DroppedError("captions")
    # Pillow's decoders raise many exception types on malformed files.
    try:
        with open_image(record.image) as header:
            size, kind = header.size, header.format
    except Image.DecompressionBombError as error:
        raise BadRecordError(f"{record.name}: cannot decode the image ({error})") from None
    except Exception:
        reason = NOT_AN_IMAGE if record.image else "the file is empty"
        raise BadRecordError(f"{record.name}: {reason}") from None
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
