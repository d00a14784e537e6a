"""What every source hands over, a captioned image, and what becomes of those that are broken.

A broken record is skipped, counted and named once in the log; the next one takes its place, so a
batch stays a function of its number alone. Past `data.max_bad_fraction` the run stops and lists
them.
"""

import itertools
import logging
import math
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from glide_jax.errors import UserError

T = TypeVar("T")
logger = logging.getLogger(__name__)

LISTED = 10
"""Broken records named in one message; the rest are only counted."""

JUDGED_RECORDS = 1000
"""The share of broken records is judged on at least so many: one early mishap proves nothing."""


@dataclass(frozen=True)
class Record:
    """One image with its captions.

    Args:
        image: the encoded file: JPEG, PNG, whatever Pillow reads.
        captions: at least one, none of them empty.
        name: what to call the record in messages: its path, or data set and number.
    """

    image: bytes
    captions: tuple[str, ...]
    name: str


@runtime_checkable
class Source(Protocol):
    """Random access to records; safe to read from several threads."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """Reads one record. Raises BadRecordError."""
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """Reads the captions alone, without the cost of the image. Raises BadRecordError."""
        ...


class BadRecordError(Exception):
    """A record cannot be used; the message names it and says why."""


def clean_captions(texts: Iterable[str | bytes], name: str) -> tuple[str, ...]:
    """Captions as text without surrounding white space; empty ones are left out.

    Args:
        texts: the raw captions; bytes are UTF-8, with or without a byte order mark.
        name: of the record, for the message.

    Raises:
        BadRecordError: one is not UTF-8, or none is left.
    """
    try:
        # JSON can spell half a surrogate pair, which is no text either; encoding finds it.
        encoded = [text.encode() if isinstance(text, str) else text for text in texts]
        decoded = [text.decode() for text in encoded]
    except UnicodeError as error:
        raise BadRecordError(f"{name}: the caption is not UTF-8 ({error})") from None
    stripped = (text.removeprefix("\ufeff").strip() for text in decoded)
    captions = tuple(text for text in stripped if text)
    if not captions:
        raise BadRecordError(f"{name}: the caption is empty")
    return captions


def first_captions(source: Source, limit: int) -> list[str]:
    """The first caption of each of the first `limit` records that are not broken, or of all."""
    indices = range(len(source))
    return [captions[0] for captions in itertools.islice(_captions(source, indices), limit)]


def random_captions(source: Source, limit: int) -> Iterator[str]:
    """At most `limit` captions from all over the source, the same ones every time.

    Those of broken records are left out; reading them for training is when they are reported.
    """
    indices = random.Random(0).sample(range(len(source)), min(len(source), limit))
    return itertools.islice(itertools.chain.from_iterable(_captions(source, indices)), limit)


def _captions(source: Source, indices: Iterable[int]) -> Iterator[tuple[str, ...]]:
    for index in indices:
        try:
            yield source.captions(index)
        except BadRecordError:
            continue


def check_bad_fraction(problems: list[str], of: int, max_bad_fraction: float) -> None:
    """Stops the run when more than `max_bad_fraction` of `of` records, rounded up, are broken.

    Rounded up: a single broken record stops no run, unless the share is 0.

    Raises:
        UserError: naming the first of them.
    """
    allowed = math.ceil(max_bad_fraction * of - 1e-9)
    if len(problems) > allowed:
        raise UserError(
            f"{len(problems)} of {of} records cannot be used, and data.max_bad_fraction = "
            f"{max_bad_fraction:g} allows {allowed}: {list_problems(problems)}. "
            "Repair or remove them, or raise data.max_bad_fraction"
        )


def list_problems(problems: list[str]) -> str:
    """The first problems in one line, and how many more there are."""
    more = len(problems) - LISTED
    return "; ".join(problems[:LISTED]) + (f"; and {more} more" if more > 0 else "")


class RecordReader:
    """Reads records, from several threads, with good ones in the place of bad.

    Args:
        source: where they come from; not empty.
        max_bad_fraction: the share of broken records past which reading stops, in [0, 1].
    """

    def __init__(self, source: Source, max_bad_fraction: float) -> None:
        self._source = source
        self._max_bad_share = max_bad_fraction
        self._lock = threading.Lock()
        self._reads = 0
        self._problems: dict[int, str] = {}

    @property
    def bad_records(self) -> int:
        """Different broken records met so far."""
        return len(self._problems)

    def read(self, index: int, prepare: Callable[[Record], T]) -> T:
        """`prepare` of the record at `index`, or of the next one for which it succeeds.

        Args:
            index: in [0, number of records).
            prepare: makes of a record what the caller wants of it; may raise BadRecordError.

        Raises:
            UserError: too many records are broken, or all of them.
        """
        total = len(self._source)
        with self._lock:
            self._reads += 1
        for place in range(index, index + total):
            try:
                return prepare(self._source[place % total])
            except BadRecordError as error:
                self._count(place % total, str(error))
        raise UserError(f"no record can be used: {list_problems(list(self._problems.values()))}")

    def _count(self, index: int, problem: str) -> None:
        total = len(self._source)
        with self._lock:
            if index in self._problems:
                return
            self._problems[index] = problem
            problems = list(self._problems.values())
            judged = min(max(self._reads, JUDGED_RECORDS), total)
        logger.warning("skipped a record: %s", problem)
        check_bad_fraction(problems, judged, self._max_bad_share)
