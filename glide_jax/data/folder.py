"""A folder of images with captions beside them, as a source.

Either every `x.jpg` has an `x.txt` of the same name, each of whose lines is a caption; or the
folder holds one `captions.jsonl`, whose lines read

    {"image": "dogs/x.jpg", "caption": "a dog"}   or   {"image": ..., "captions": ["a dog", ...]}

with paths relative to the folder. Several lines for one image add up; images that no line names
are left out. Sub-folders are searched, hidden files and folders are not.

The folder is indexed once, into `.glide_jax_index.json` inside it, and again when a file in it
appears, disappears or changes. Where that file cannot be written, every start indexes afresh.
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

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
CAPTIONS_FILE = "captions.jsonl"
INDEX_FILE = ".glide_jax_index.json"
INDEX_VERSION = 1
SPLITS = ("train", "validation", "all")
VALIDATION_SHARE = 0.02

Entry = tuple[str, tuple[str, ...]]
"""An image's path relative to the folder, with '/', and its captions."""

Index = tuple[list[Entry], list[str]]
"""What can be used, sorted by path, and what is wrong with all the rest."""

logger = logging.getLogger(__name__)


class FolderSource:
    """Records of a folder; see the module's docstring. Random access, safe for threads."""

    def __init__(self, root: Path, entries: list[Entry]) -> None:
        self._root = root
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Record:
        path, captions = self._entries[index]
        name = str(self._root / path)
        try:
            image = (self._root / path).read_bytes()
        except OSError as error:
            raise BadRecordError(f"{name}: {error.strerror}") from None
        return Record(image, captions, name)

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions at `index`; they are kept in memory."""
        return self._entries[index][1]


def open_folder(root: Path, split: str, max_bad_fraction: float) -> FolderSource:
    """Indexes a folder, or reads its index, and opens one split of it.

    Validation holds the images whose paths hash below 2%, so that images stay in their split as
    the folder grows; and always the lowest, so that it is not empty.

    Args:
        root: the folder.
        split: train, validation, or all (both).
        max_bad_fraction: stop when more of the images than this have no usable caption.

    Raises:
        UserError: no such folder or split, nothing usable in it, or too much of it is not.
    """
    if split not in SPLITS:
        raise UserError(f"folder {root} has no split {split!r}: choose {', '.join(SPLITS)}")
    entries, problems = read_index(root)
    if not entries and not problems:
        raise UserError(f"{root}: no images ({', '.join(IMAGE_SUFFIXES)}) in this folder")
    if problems:
        logger.warning("%s: left out %d records: %s", root, len(problems), list_problems(problems))
        check_bad_fraction(problems, len(entries) + len(problems), max_bad_fraction)
    if not entries:
        raise UserError(f"{root}: no image has a usable caption: {list_problems(problems)}")
    chosen = _split(entries, split)
    if not chosen:
        raise UserError(
            f"{root}: one image cannot be split into train and validation; "
            "add a second, or set data.validation_split=train"
        )
    return FolderSource(root, chosen)


def _split(entries: list[Entry], split: str) -> list[Entry]:
    if split == "all":
        return entries
    rank = {path: _uniform_hash(path) for path, _ in entries}
    lowest, *others = sorted(rank, key=rank.__getitem__)
    # At least one image is held out, and at least one is not.
    held_out = {lowest} if others else set()
    held_out |= {path for path in others[:-1] if rank[path] < VALIDATION_SHARE}
    return [entry for entry in entries if (entry[0] in held_out) == (split == "validation")]


def _uniform_hash(path: str) -> float:
    """A number in [0, 1) that depends on the path alone."""
    digest = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def read_index(root: Path) -> Index:
    """The folder's index: the one that is kept in it, or a new one if anything has changed.

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
        pass  # none yet, or not whole: made below
    entries, problems = (_index_jsonl if CAPTIONS_FILE in files else _index_text)(root, files)
    index = {
        "version": INDEX_VERSION,
        "signature": signature,
        "entries": entries,
        "problems": problems,
    }
    # Several processes may start at once: each writes its own file, whole, and the last one stays.
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
    """Path relative to `root` -> (size, modification time), sorted; hidden files are left out."""

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
                except OSError:  # a dangling link: reading it will say so
                    state = (-1, -1)
                files[os.path.relpath(path, root).replace(os.sep, "/")] = state
    return dict(sorted(files.items()))


def _index_text(root: Path, files: Collection[str]) -> Index:
    """Each image with the lines of the text file of the same name."""
    entries: list[Entry] = []
    problems = []
    for path in files:
        stem, suffix = os.path.splitext(path)
        if suffix.lower() not in IMAGE_SUFFIXES:
            continue
        try:
            if stem + ".txt" not in files:
                raise BadRecordError(
                    f"{root / path}: no caption: {os.path.basename(stem)}.txt is not beside it"
                )
            name = f"{root / stem}.txt"
            entries.append((path, clean_captions(Path(name).read_bytes().splitlines(), name)))
        except BadRecordError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{name}: {error.strerror}")
    return entries, problems


def _index_jsonl(root: Path, files: Collection[str]) -> Index:
    """The images that captions.jsonl names, with its captions."""
    found: dict[str, tuple[str, ...]] = {}
    problems = []
    try:
        lines = (root / CAPTIONS_FILE).read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"cannot read {root / CAPTIONS_FILE}: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{root / CAPTIONS_FILE} line {number}"
        try:
            path, captions = _parse_line(line, where)
            if path not in files and not (root / path).is_file():
                raise BadRecordError(f"{where}: there is no image {path}")
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
                f'{where}: needs "image", a path, and "caption", a text, '
                'or "captions", a list of texts'
            )
    return os.path.normpath(path).replace(os.sep, "/"), clean_captions(captions, where)
