"""Captioned images as read from a source, and the handling of broken ones.

A broken record is skipped, counted and logged once. The next good record replaces it, so a batch
still depends on its number alone. Past `data.max_bad_fraction` the run stops and lists the broken
records.
"""

import itertools
import json
import logging
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float32

from glide_jax.data.locks import Lock
from glide_jax.errors import UserError

T = TypeVar("T")
logger = logging.getLogger(__name__)

MAX_LISTED = 10
"""Broken records named in one message. The rest are only counted."""

MIN_RECORDS = 1000
"""Smallest denominator of the fraction of broken records, so that one early broken record does
not stop a run."""


@dataclass(frozen=True)
class Record:
    """One image with its captions.

    Args:
        image: the encoded file, in one of `glide_jax.images.FORMATS`; empty if there is none.
        captions: one or more non-empty captions.
        name: identifies the record in messages: its path, or data set and index.
        embedding: the image's CLIP embedding, from a source of embeddings.
    """

    image: bytes
    captions: tuple[str, ...]
    name: str
    embedding: Float32[np.ndarray, "d"] | None = None


@runtime_checkable
class Source(Protocol):
    """Random access to records. Thread-safe."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """Reads one record. Raises BadRecordError."""
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """Reads only the captions, without the cost of the image. Raises BadRecordError."""
        ...


class BadRecordError(Exception):
    """An unusable record. The message names it and gives the reason, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(name: str) -> str:
    """A name in one line of valid UTF-8: other characters as in Python's string literals.

    File names may hold line breaks, terminal codes, and bytes that are not UTF-8.
    """
    if name.isprintable():
        return name
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)


def parse_json(content: bytes, where: str) -> Any:
    """Parses JSON. Raises BadRecordError, also for JSON nested too deeply."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # ValueError: JSON or UTF-8
        raise BadRecordError(f"{where}: not JSON ({error})") from None


def clean_captions(texts: Iterable[str | bytes], name: str) -> tuple[str, ...]:
    """Decodes and strips captions, and drops empty ones.

    Args:
        texts: the raw captions. Bytes are UTF-8, with or without a byte order mark.
        name: the record's name, for messages.

    Raises:
        BadRecordError: a caption is not UTF-8, or all are empty.
    """
    try:
        # JSON strings may contain a lone surrogate, which is invalid too. Encoding detects it.
        encoded = [text.encode() if isinstance(text, str) else text for text in texts]
        decoded = [text.decode() for text in encoded]
    except UnicodeError as error:
        raise BadRecordError(f"{name}: the caption is not UTF-8 ({error})") from None
    stripped = (text.removeprefix("\ufeff").strip() for text in decoded)
    captions = tuple(text for text in stripped if text)
    if not captions:
        raise BadRecordError(f"{name}: the caption is empty")
    return captions


def random_captions(source: Source, limit: int) -> Iterator[str]:
    """A fixed random selection of at most `limit` captions.

    Broken records are skipped silently here. Training reports them when it reads them.
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
    """Checks that at most `max_bad_fraction` of `of` records are broken.

    The limit is rounded up, so one broken record is always allowed unless the fraction is 0.

    Raises:
        UserError: too many are broken. The message names the first ones.
    """
    allowed = math.ceil(max_bad_fraction * of - 1e-9)
    if len(problems) > allowed:
        raise UserError(
            f"{len(problems)} of {of} records cannot be used, and data.max_bad_fraction = "
            f"{max_bad_fraction:g} allows {allowed}: {list_problems(problems)}. "
            "Repair or remove them, or raise data.max_bad_fraction"
        )


def list_problems(problems: list[str]) -> str:
    """The first problems and the number of further ones, in one line."""
    more = len(problems) - MAX_LISTED
    return "; ".join(problems[:MAX_LISTED]) + (f"; and {more} more" if more > 0 else "")


class RecordReader:
    """Reads records and replaces broken ones. Thread-safe.

    Args:
        source: a non-empty source.
        max_bad_fraction: the largest allowed fraction of broken records, in [0, 1].
    """

    def __init__(self, source: Source, max_bad_fraction: float) -> None:
        self._source = source
        self._max_bad_fraction = max_bad_fraction
        self._lock = Lock()
        self._reads = 0
        self._problems: dict[int, str] = {}

    @property
    def bad_records(self) -> int:
        """Number of distinct broken records so far."""
        return len(self._problems)

    def read(self, index: int, prepare: Callable[[Record], T]) -> T:
        """Applies `prepare` to the record at `index`, or to the next good one.

        Args:
            index: in [0, number of records).
            prepare: converts a record. May raise BadRecordError.

        Raises:
            UserError: too many records are broken, or all of them.
        """
        total = len(self._source)
        for place in range(index, index + total):
            found = self.attempt(place % total, prepare)
            if found is not None:
                return found
        raise self.nothing_usable()

    def attempt(self, index: int, prepare: Callable[[Record], T]) -> T | None:
        """Applies `prepare` to the record at `index`; None if it is broken, which is counted.

        Args:
            index, prepare: see `read`.

        Raises:
            UserError: too many records are broken.
        """
        with self._lock:
            self._reads += 1
        try:
            return prepare(self._source[index])
        except BadRecordError as error:
            self._count(index, str(error))
            return None

    def counted(self) -> tuple[int, list[tuple[int, str]]]:
        """The number of records read, and the problems of broken ones by index, in order."""
        return self._reads, list(self._problems.items())

    def add(self, reads: int, problems: Mapping[int, str]) -> None:
        """Counts what a reader in another process has counted.

        Raises:
            UserError: too many records are broken.
        """
        with self._lock:
            self._reads += reads
        for index, problem in problems.items():
            self._count(index, problem)

    def nothing_usable(self) -> UserError:
        """The error of a source of broken records."""
        problems = [self._problems[index] for index in sorted(self._problems)]
        return UserError(f"no record can be used: {list_problems(problems)}")

    def _count(self, index: int, problem: str) -> None:
        total = len(self._source)
        with self._lock:
            if index in self._problems:
                return
            self._problems[index] = problem
            problems = list(self._problems.values())
            records = min(max(self._reads, MIN_RECORDS), total)
        logger.warning("skipped a record: %s", problem)
        check_bad_fraction(problems, records, self._max_bad_fraction)
