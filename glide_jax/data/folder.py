"""A source of images and captions in a folder.

Each `x.jpg` has an `x.txt` of the same name with one caption per line. Alternatively, the folder
has one `captions.jsonl` with lines such as

    {"image": "dogs/x.jpg", "caption": "a dog"}   or   {"image": ..., "captions": ["a dog", ...]}

Paths are relative to the folder. Several lines for one image are combined; images without a line
are ignored. Subfolders are searched, hidden files and folders are not.

The index is cached in the folder as `.glide_jax_index.json` and rebuilt when a file is added,
removed or changed. If it cannot be written, it is rebuilt at every start.
"""

import hashlib
import json
import logging
import os
import socket
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from glide_jax.data.records import (
    BadRecordError,
    Record,
    check_bad_fraction,
    clean_captions,
    list_problems,
)
from glide_jax.errors import UserError
from glide_jax.images import MAX_FILE_BYTES
from glide_jax.storage import read_regular

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
CAPTIONS_FILE = "captions.jsonl"
INDEX_FILE = ".glide_jax_index.json"
INDEX_VERSION = 1
SPLITS = ("train", "validation", "all")
VALIDATION_FRACTION = 0.02
MAX_CAPTIONS_BYTES = 2**20
"""Size of the caption file of an image."""
MAX_CAPTIONS_FILE_BYTES = 2**32
"""Size of captions.jsonl."""

Entry = tuple[str, tuple[str, ...]]
"""An image's path, relative to the folder and with '/', and its captions."""

Index = tuple[list[Entry], list[str]]
"""The usable entries, sorted by path, and the problems of the others."""

logger = logging.getLogger(__name__)


class FolderSource:
    """Records of a folder, see the module's docstring. Random access, thread-safe."""

    def __init__(self, root: Path, entries: list[Entry]) -> None:
        self._root = root
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Record:
        path, captions = self._entries[index]
        name = str(self._root / path)
        try:
            image = read_regular(self._root / path, MAX_FILE_BYTES)
        except OSError as error:
            raise BadRecordError(f"{name}: {error.strerror}") from None
        return Record(image, captions, name)

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions at `index`, from memory."""
        return self._entries[index][1]


def open_folder(root: Path, split: str, max_bad_fraction: float) -> FolderSource:
    """Opens one split of a folder, using its cached index if it is up to date.

    The validation split has the images whose path hash is below 2%, so images stay in their split
    as the folder grows. The image with the lowest hash always belongs to it.

    Args:
        root: the folder.
        split: train, validation, or all (both).
        max_bad_fraction: the largest allowed fraction of images without a usable caption.

    Raises:
        UserError: no such folder or split, no usable image, or too many unusable ones.
    """
    if split not in SPLITS:
        raise UserError(f"folder {root} has no split {split!r}: choose {', '.join(SPLITS)}")
    entries, problems = read_index(root)
    if not entries and not problems:
        raise UserError(f"{root}: no images ({', '.join(IMAGE_SUFFIXES)}) in this folder")
    if problems:
        logger.warning("%s: skipped %d records: %s", root, len(problems), list_problems(problems))
        check_bad_fraction(problems, len(entries) + len(problems), max_bad_fraction)
    if not entries:
        raise UserError(f"{root}: no image has a usable caption: {list_problems(problems)}")
    chosen = _split(entries, split)
    if not chosen:
        raise UserError(
            f"{root}: a single image cannot be split into train and validation: "
            "add another, or set data.validation_split=train"
        )
    return FolderSource(root, chosen)


def _split(entries: list[Entry], split: str) -> list[Entry]:
    if split == "all":
        return entries
    rank = {path: _uniform_hash(path) for path, _ in entries}
    lowest, *others = sorted(rank, key=rank.__getitem__)
    # Neither split is empty.
    held_out = {lowest} if others else set()
    held_out |= {path for path in others[:-1] if rank[path] < VALIDATION_FRACTION}
    return [entry for entry in entries if (entry[0] in held_out) == (split == "validation")]


def _uniform_hash(path: str) -> float:
    """A hash of the path, uniform in [0, 1)."""
    digest = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def read_index(root: Path) -> Index:
    """The folder's index, from its cache or rebuilt if a file has changed.

    Raises:
        UserError: a folder or captions.jsonl cannot be read.
    """
    files = _list_files(root)
    signature = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    try:
        stored = json.loads((root / INDEX_FILE).read_bytes())
        if (stored["version"], stored["signature"]) == (INDEX_VERSION, signature):
            return [(path, tuple(captions)) for path, captions in stored["entries"]], stored[
                "problems"
            ]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing or truncated: rebuilt below
    entries, problems = (_index_jsonl if CAPTIONS_FILE in files else _index_text)(root, files)
    index = {
        "version": INDEX_VERSION,
        "signature": signature,
        "entries": entries,
        "problems": problems,
    }
    # Processes that start at the same time each write a complete file; the last one wins.
    unfinished = root / f"{INDEX_FILE}.{socket.gethostname()}.{os.getpid()}"
    try:
        unfinished.write_text(json.dumps(index))
        unfinished.replace(root / INDEX_FILE)
    except OSError as error:
        logger.info("%s: the index is not kept: %s", root, error)
        with suppress(OSError):
            unfinished.unlink()
    return entries, problems


def _list_files(root: Path) -> dict[str, tuple[int, int]]:
    """Maps each path, relative to `root`, to its size and modification time. No hidden files."""

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read the folder {error.filename}: {error.strerror}")

    files = {}
    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                path = os.path.join(folder, name)
                try:
                    stat = os.stat(path)
                    state = (stat.st_size, stat.st_mtime_ns)
                except OSError:  # a dangling link, reported when it is read
                    state = (-1, -1)
                files[os.path.relpath(path, root).replace(os.sep, "/")] = state
    return dict(sorted(files.items()))


def _index_text(root: Path, files: Collection[str]) -> Index:
    """Images with captions in text files of the same name."""
    entries: list[Entry] = []
    problems = []
    for path in files:
        stem, suffix = os.path.splitext(path)
        if suffix.lower() not in IMAGE_SUFFIXES:
            continue
        try:
            if stem + ".txt" not in files:
                raise BadRecordError(f"{root / path}: no caption file {os.path.basename(stem)}.txt")
            name = f"{root / stem}.txt"
            texts = read_regular(Path(name), MAX_CAPTIONS_BYTES).splitlines()
            entries.append((path, clean_captions(texts, name)))
        except BadRecordError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{name}: {error.strerror}")
    return entries, problems


def _index_jsonl(root: Path, files: Collection[str]) -> Index:
    """Images and captions listed in captions.jsonl."""
    found: dict[str, tuple[str, ...]] = {}
    problems = []
    try:
        lines = read_regular(root / CAPTIONS_FILE, MAX_CAPTIONS_FILE_BYTES).splitlines()
    except OSError as error:
        raise UserError(f"cannot read {root / CAPTIONS_FILE}: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{root / CAPTIONS_FILE} line {number}"
        try:
            path, captions = _parse_line(line, where)
            if path not in files and not (root / path).is_file():
                raise BadRecordError(f"{where}: no image {path}")
            found[path] = found.get(path, ()) + captions
        except BadRecordError as error:
            problems.append(str(error))
    return sorted(found.items()), problems


def _parse_line(line: bytes, where: str) -> Entry:
    try:
        row = json.loads(line)
    except ValueError as error:  # JSON or UTF-8
        raise BadRecordError(f"{where}: not JSON ({error})") from None
    match row:
        case {"image": str(path), "caption": str(caption)}:
            captions = [caption]
        case {"image": str(path), "captions": [*captions]} if all(
            isinstance(caption, str) for caption in captions
        ):
            pass
        case _:
            raise BadRecordError(
                f'{where}: needs "image" (a path) and "caption" (a string) '
                'or "captions" (a list of strings)'
            )
    return os.path.normpath(path).replace(os.sep, "/"), clean_captions(captions, where)
