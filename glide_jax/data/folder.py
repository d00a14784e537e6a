"""A source of images and captions in a folder.

Each `x.jpg` has an `x.txt` of the same name with one caption per line. Alternatively, a folder has
a `captions.jsonl` with lines such as

    {"image": "dogs/x.jpg", "caption": "a dog"}   or   {"image": ..., "captions": ["a dog", ...]}

or a `metadata.jsonl` as on the Hugging Face hub, {"file_name": "dogs/x.jpg", "text": "a dog"}.
Paths are relative to the folder of that file and inside it. Several lines for one image are
combined; images of that folder and its subfolders without a line are ignored, and counted in a
warning.

Subfolders are searched, also linked ones. Hidden files and folders are not. Suffixes may be in
upper case, and names that Unicode considers equal are equal.
"""

import hashlib
import logging
import os
import unicodedata
from pathlib import Path

from glide_jax.data.folder_index import IMAGE_SUFFIXES, Entry, read_index
from glide_jax.data.records import (
    BadRecordError,
    Record,
    check_bad_fraction,
    list_problems,
    printable,
)
from glide_jax.errors import UserError
from glide_jax.images import MAX_FILE_BYTES
from glide_jax.storage import read_regular

SPLITS = ("train", "validation", "all")
VALIDATION_FRACTION = 0.02

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
        name = printable(str(self._root / path))
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
    """A hash of the path, uniform in [0, 1). macOS decomposes accents when it copies a file."""
    normal = os.fsencode(unicodedata.normalize("NFC", path))
    digest = hashlib.blake2b(normal, digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
