"""The index of a folder of images: their paths and captions, in the layouts of data/folder.py.

The index is cached in the folder as `.glide_jax_index.json` and rebuilt when a file is added,
removed or changed. If it cannot be written, it is rebuilt at every start.
"""

import hashlib
import json
import logging
import os
import posixpath
import socket
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from glide_jax.data.records import BadRecordError, clean_captions, parse_json, printable
from glide_jax.errors import UserError
from glide_jax.storage import read_regular, relative_path

IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".avif",
)
"""Suffixes of images, in lower case."""
OTHER_IMAGE_SUFFIXES = (
    ".heic",
    ".heif",
    ".jxl",
    ".jp2",
    ".svg",
    ".psd",
    ".tga",
    ".ppm",
    ".eps",
    ".dng",
    ".cr2",
)
"""Suffixes of images that are named instead of read."""
CAPTIONS_FILE = "captions.jsonl"
METADATA_FILE = "metadata.jsonl"
OTHER_METADATA_FILES = ("metadata.csv", "metadata.parquet")
INDEX_FILE = ".glide_jax_index.json"
INDEX_VERSION = 2
MAX_CAPTIONS_BYTES = 2**20
"""Size of the captions of an image."""
MAX_CAPTIONS_FILE_BYTES = 2**32
"""Size of captions.jsonl, and of the cached index."""

Entry = tuple[str, tuple[str, ...]]
"""An image's path, relative to the folder and with '/', and its captions."""

State = tuple[int, int, int]
"""Size, modification time and change time of a file. Copying tools preserve all but the last."""
BROKEN_LINK: State = (-1, -1, -1)

logger = logging.getLogger(__name__)


class _Index(NamedTuple):
    entries: list[Entry]
    """Sorted by path."""
    problems: list[str]
    """One for each unusable image or line."""
    notes: list[str]
    """Files that are not read."""


def read_index(
    root: Path, files: Mapping[str, State] | None = None
) -> tuple[list[Entry], list[str]]:
    """The images of a folder, from its cached index or rebuilt if a file has changed.

    Files that are not read are counted in a warning.

    Args:
        root: the folder.
        files: its `list_files`, if the caller has them.

    Returns:
        The usable entries, sorted by path, and the problems of the others.

    Raises:
        UserError: a folder or captions.jsonl cannot be read.
    """
    if files is None:
        files = list_files(root)
    signature = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    index = _stored_index(root, signature, files)
    if index is None:
        index = _build(root, files)
        _store_index(root, signature, index)
    for note in index.notes:
        logger.warning("%s", printable(note))
    return index.entries, index.problems


def list_files(root: Path) -> dict[str, State]:
    """The files below a folder, with '/', sorted. Follows links. Skips hidden files and folders.

    Raises:
        UserError: a folder cannot be read.
    """
    files, seen = {}, set[tuple[int, int]]()
    # A folder that links reach too is listed once, under its own name.
    folders, links = [""], deque[str]()
    while folders or links:
        folder = folders.pop() if folders else links.popleft()
        try:
            stat = os.stat(root / folder)
            with os.scandir(root / folder) as found:
                members = sorted(found, key=lambda member: member.name)
        except OSError as error:
            raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from None
        except ValueError as error:
            raise UserError(f"cannot read the folder {printable(str(root))}: {error}") from None
        if (stat.st_dev, stat.st_ino) in seen:
            continue
        seen.add((stat.st_dev, stat.st_ino))
        for member in members:
            path = posixpath.join(folder, member.name)
            if member.name.startswith("."):
                continue
            if _is_folder(member):
                (links if member.is_symlink() else folders).append(path)
            else:
                files[path] = _state(root / path)
    return dict(sorted(files.items()))


def _is_folder(member: os.DirEntry[str]) -> bool:
    try:
        return member.is_dir()
    except OSError:  # a link to itself
        return False


def _state(path: Path) -> State:
    try:
        stat = path.stat()
    except OSError:  # an image or caption is reported when it is read
        return BROKEN_LINK
    return (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


# Cache ----------------------------------------------------------------------------------------


def _stored_index(root: Path, signature: str, files: Mapping[str, State]) -> _Index | None:
    """The cached index. None if it is missing, damaged or of other files."""
    try:
        stored = json.loads(read_regular(root / INDEX_FILE, MAX_CAPTIONS_FILE_BYTES))
        if (stored["version"], stored["signature"]) != (INDEX_VERSION, signature):
            return None
        entries = [_stored_entry(path, captions, files) for path, captions in stored["entries"]]
        return _Index(entries, _texts(stored["problems"]), _texts(stored["notes"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _stored_entry(path: Any, captions: Any, files: Mapping[str, State]) -> Entry:
    if path not in files and relative_path(path) != path:
        raise ValueError("not a path of the folder")
    return path, tuple(_texts(captions))


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError("not a list of texts")
    return values


def _store_index(root: Path, signature: str, index: _Index) -> None:
    content = {"version": INDEX_VERSION, "signature": signature} | index._asdict()
    # Processes that start at the same time each write a complete file; the last one wins.
    unfinished = root / f"{INDEX_FILE}.{socket.gethostname()}.{os.getpid()}"
    try:
        unfinished.write_text(json.dumps(content), encoding="utf-8")
        unfinished.replace(root / INDEX_FILE)
    except OSError as error:
        logger.info("%s: the index is not kept: %s", root, error)
        with suppress(OSError):
            unfinished.unlink()


# Layouts --------------------------------------------------------------------------------------


def _build(root: Path, files: Mapping[str, State]) -> _Index:
    names = {_normal(path): path for path in files}
    listed: dict[str, tuple[str, ...]] = {}
    folders = set[str]()
    index = _Index([], [], [])
    for path in files:
        folder, _, name = path.rpartition("/")
        if name.lower() in OTHER_METADATA_FILES:
            index.notes.append(f"{root / path} is not read: write {CAPTIONS_FILE} instead")
        if name.lower() not in (CAPTIONS_FILE, METADATA_FILE):
            continue
        found, problems = _read_list(root, path, files, names)
        if name.lower() == METADATA_FILE and not found and problems:
            index.notes.append(f"{root / path} is not read: {problems[0]}")
            continue
        folders.add(folder)
        index.problems.extend(problems)
        for image, captions in found:
            listed[image] = listed.get(image, ()) + captions
    broken = [path for path in files if files[path] == BROKEN_LINK and not _is_image(path)]
    if broken:
        index.notes.append(f"{root}: {len(broken)} links lead nowhere, such as {broken[0]}")
    unlisted = [path for path in files if path not in listed]
    ignored = [path for path in unlisted if _is_image(path) and _is_below(path, folders)]
    if ignored:
        index.notes.append(
            f"{root}: {len(ignored)} images have no line in {CAPTIONS_FILE} or {METADATA_FILE} "
            f"and are not read, such as {ignored[0]}"
        )
    entries, problems = _read_texts(root, [p for p in unlisted if not _is_below(p, folders)])
    return index._replace(
        entries=sorted([*listed.items(), *entries]), problems=index.problems + problems
    )


def _normal(path: str) -> str:
    """The path with composed accents: macOS decomposes those of files that it copies."""
    return unicodedata.normalize("NFC", path)


def _is_image(path: str) -> bool:
    return posixpath.splitext(path)[1].lower() in IMAGE_SUFFIXES


def _is_below(path: str, folders: set[str]) -> bool:
    """Whether one of `folders` contains the path, or contains its folder."""
    while folders and path:
        path = path.rpartition("/")[0]
        if path in folders:
            return True
    return False


def _read_texts(root: Path, files: Iterable[str]) -> tuple[list[Entry], list[str]]:
    """Images with captions in text files of the same name."""
    entries, problems = [], []
    images, texts = [], {}
    for path in files:
        stem, suffix = posixpath.splitext(path)
        if suffix.lower() == ".txt":
            # If names are equal to Unicode alone, each image still has its own.
            texts[_normal(stem)] = texts[stem] = path
        elif suffix.lower() in IMAGE_SUFFIXES + OTHER_IMAGE_SUFFIXES:
            images.append((path, stem, suffix.lower()))
    for path, stem, suffix in images:
        text = texts.get(stem) or texts.get(_normal(stem))
        try:
            if suffix in IMAGE_SUFFIXES:
                entries.append((path, _read_text(root, path, text)))
            elif text is not None:
                raise BadRecordError(f"{root / path}: {not_readable(suffix)}")
        except BadRecordError as error:
            problems.append(str(error))
    return entries, problems


def not_readable(suffix: str) -> str:
    """Why an image with one of `OTHER_IMAGE_SUFFIXES` is not read."""
    return f"images {suffix} cannot be read: convert it to JPEG or PNG"


def _read_text(root: Path, path: str, text: str | None) -> tuple[str, ...]:
    if text is None:
        name = posixpath.basename(posixpath.splitext(path)[0])
        raise BadRecordError(f"{root / path}: no caption file {name}.txt")
    try:
        lines = read_regular(root / text, MAX_CAPTIONS_BYTES).splitlines()
    except OSError as error:
        raise BadRecordError(f"{root / text}: {error.strerror}") from None
    return clean_captions(lines, str(root / text))


def _read_list(
    root: Path, path: str, files: Mapping[str, State], names: Mapping[str, str]
) -> tuple[list[Entry], list[str]]:
    """Images and captions listed in captions.jsonl or metadata.jsonl."""
    try:
        lines = read_regular(root / path, MAX_CAPTIONS_FILE_BYTES).splitlines()
    except OSError as error:
        raise UserError(f"cannot read {root / path}: {error.strerror}") from None
    found, problems = [], []
    for number, line in enumerate(lines, start=1):
        where = f"{root / path} line {number}"
        try:
            if line.strip():
                name, captions = _parse_line(line, where)
                image = posixpath.join(posixpath.dirname(path), name)
                image = image if image in files else names.get(_normal(image), image)
                if image not in files and not _is_file(root / image):
                    raise BadRecordError(f"{where}: no image {name}")
                found.append((image, captions))
        except BadRecordError as error:
            problems.append(str(error))
    return found, problems


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()  # a hidden one
    except OSError:  # the path is too long
        return False


def _parse_line(line: bytes, where: str) -> Entry:
    match parse_json(line, where):
        case {"image": path, **row} | {"file_name": path, **row}:
            captions = list(_captions(row))
        case _:
            captions = []
    if not captions or not all(isinstance(caption, str) for caption in captions):
        raise BadRecordError(
            f'{where}: needs "image" or "file_name" (a path), and "caption" or "text" (a string) '
            'or "captions" (a list of strings)'
        )
    try:
        return relative_path(path), clean_captions(captions, where)
    except ValueError as error:
        raise BadRecordError(f"{where}: {error}") from None


def _captions(row: Mapping[Any, Any]) -> Iterator[Any]:
    for key in ("caption", "captions", "text"):
        if key in row:
            yield from row[key] if isinstance(row[key], list) else [row[key]]
            return
