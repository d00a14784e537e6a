"""What all inputs of `prepare` share: units of work, opened files, and checked records."""

import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import fsspec

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


def is_remote(path: str) -> bool:
    """Whether a path is a URL. Local names are taken as they are."""
    return "://" in path


def open_input(path: str) -> Any:
    """Opens a local file or a URL for reading.

    Raises:
        OSError: it cannot be read; with an errno, also later.
    """
    return io.BufferedReader(_RemoteFile(path), 2**20) if is_remote(path) else open(path, "rb")


class _RemoteFile(io.RawIOBase):
    """A file at a URL. Errors of the network are OSErrors with an errno: no damaged content."""

    def __init__(self, path: str) -> None:
        self._path = path
        with self._network_errors():
            self._file = fsspec.open(path, "rb").open()

    @contextmanager
    def _network_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any type, by protocol
            raise OSError(errno.EIO, f"{self._path}: {first_line(error)}") from None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._network_errors():
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = 0) -> int:
        with self._network_errors():
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


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
