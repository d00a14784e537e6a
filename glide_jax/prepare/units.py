"""What all inputs of `prepare` share: units of work, where captions are, and checked records."""

from dataclasses import dataclass
from typing import Any, Literal

from glide_jax.data.records import BadRecordError, Record, clean_captions, printable


@dataclass(frozen=True)
class Keys:
    """Location of captions and images in tars and parquet files."""

    caption_key: str = ""
    """Tars: key of the caption, or the list of captions, in each .json. Default: the .txt file."""
    image_column: str = "image"
    """Parquet: column of encoded images, as bytes or as {bytes, path}."""
    caption_column: str = "caption"
    """Parquet: column of captions, as strings or lists of strings."""


@dataclass(frozen=True)
class Unit:
    """The input of one worker job.

    Args:
        kind: type of the input.
        path: the file or folder.
        state: size in bytes, to detect changes.
        groups: parquet: indices of row groups.
        entries: folder: relative paths and captions.
        problems: problems found before reading.
    """

    kind: Literal["folder", "tar", "parquet"]
    path: str
    state: int
    groups: tuple[int, ...] = ()
    entries: tuple[tuple[str, tuple[str, ...]], ...] = ()
    problems: tuple[str, ...] = ()


def make_record(image: Any, captions: Any, name: str) -> Record:
    """A record of values that were read from a file.

    Raises:
        BadRecordError: the image or the captions have the wrong type, or are unusable.
    """
    if image is None:
        raise BadRecordError(f"{name}: no image")
    if not isinstance(image, bytes):
        raise BadRecordError(f"{name}: the image is {type(image).__name__}, not bytes")
    texts = captions if isinstance(captions, list) else [captions]
    if not all(isinstance(text, (str, bytes)) for text in texts):
        raise BadRecordError(f"{name}: the caption is not a string or a list of strings")
    return Record(image, clean_captions(texts, name), printable(name))


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return next(iter(str(error).splitlines()), type(error).__name__)
