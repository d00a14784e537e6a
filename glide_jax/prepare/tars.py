"""Records of tars in webdataset format, as written by img2dataset: 000000001.jpg, .txt and .json.

Files of a record share a name up to the first dot, and may be anywhere in the tar. Links are
followed within the tar, of equal names the last is read, and further tars may be appended.
"""

import bisect
import bz2
import gzip
import lzma
import os
import posixpath
import tempfile
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

from glide_jax.data.folder_index import (
    IMAGE_SUFFIXES,
    MAX_CAPTIONS_BYTES,
    OTHER_IMAGE_SUFFIXES,
    not_readable,
)
from glide_jax.data.records import BadRecordError, Record, parse_json
from glide_jax.images import MAX_FILE_BYTES
from glide_jax.prepare.tar_members import MAX_NAME_CHARS, Member, list_members, read_member
from glide_jax.prepare.units import Keys, first_line, is_remote, make_record, open_input

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MAX_EXPANSION = 100
"""Ratio of the decompressed to the compressed size of tars above `MIN_EXPANDED_BYTES`."""
MIN_EXPANDED_BYTES = 2**30
CAPTION_SUFFIXES = {".txt", ".json"}
MAX_LINKS = 40
"""Links that lead from one to the next."""

OPENERS: Mapping[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
"""By the first bytes of a compressed file."""


def read_tar(path: str, keys: Keys) -> Iterator[Record | BadRecordError]:
    """Yields the records of a tar in the order of their first files.

    What is missing or damaged is one further problem at the end.

    Args:
        path: a file or URL. Compressed and remote tars are copied to a temporary file.
        keys: location of the captions.

    Raises:
        OSError: the file cannot be read.
    """
    with _local_file(path) as (file, incomplete):
        contents = list_members(file)
        truncated = incomplete or contents.problem
        records = 0
        for name, group in _groups(contents.members):
            for result in _read_group(file, path, name, group, keys):
                if isinstance(result, Record):
                    records += 1
                elif truncated and contents.last in [name for name, _ in group.values()]:
                    continue  # the rest of the record is missing too
                yield result
    if truncated:
        yield BadRecordError(f"{path}: truncated or damaged after {records} records ({truncated})")
    if contents.skipped:
        yield BadRecordError(f"{path}: damaged: skipped {contents.skipped} blocks of 512 bytes")
    if contents.long_names:
        yield BadRecordError(
            f"{path}: skipped {contents.long_names} files with names of more than "
            f"{MAX_NAME_CHARS:,} characters"
        )
    if contents.replaced:
        yield BadRecordError(
            f"{path}: {len(contents.replaced)} images are replaced by later ones of the same name, "
            f"such as {contents.replaced[0]}: rename them to keep them"
        )


@contextmanager
def _local_file(path: str) -> Iterator[tuple[BinaryIO, str]]:
    """Opens a tar for random access, decompressed, and says why its end is missing."""
    with open_input(path) as file:
        start = file.read(6)
        file.seek(0)
        opener = next((OPENERS[magic] for magic in OPENERS if start.startswith(magic)), None)
        if opener is None and not is_remote(path):
            yield file, ""
            return
        limit = max(MAX_EXPANSION * file.seek(0, os.SEEK_END), MIN_EXPANDED_BYTES)
        file.seek(0)
        with tempfile.TemporaryFile(prefix="glide_jax_") as copy:
            yield copy, _copy(opener(file) if opener else file, copy, limit)


def _copy(source: Any, copy: BinaryIO, limit: int) -> str:
    """Copies up to `limit` bytes, and says what is wrong with the rest."""
    try:
        while content := source.read(2**20):
            if copy.tell() > limit:
                return f"decompressed, it has more than {limit / 1e6:,.0f} MB"
            copy.write(content)
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno:  # of the disk or the network
            raise
        return first_line(error)
    return ""


# Records --------------------------------------------------------------------------------------

_Group = dict[str, tuple[str, Member]]
"""Files of a record, by suffix in lower case, with their names."""


def _groups(members: Mapping[str, Member]) -> Iterator[tuple[str, _Group]]:
    """The names and files of all records."""
    groups: dict[str, _Group] = {}
    names = sorted(members)
    for name, member in members.items():
        resolved = _resolve(member, members)
        if resolved.target and _has_folder(names, resolved.target):
            continue  # the files in it have names of their own
        folder, base = posixpath.split(name)
        stem, dot, suffix = base.partition(".")
        key = unicodedata.normalize("NFC", posixpath.join(folder, stem))
        suffix = (dot + suffix).lower()
        if suffix in groups.get(key, ()):  # x.JPG beside x.jpg
            key = name
        groups.setdefault(key, {})[suffix] = (name, resolved)
    for key, group in groups.items():
        parts: dict[str, _Group] = defaultdict(dict)
        for suffix, file in group.items():
            middle, dot, last = suffix.rpartition(".")
            parts[middle][dot + last] = file
        has_image = _has_image(parts.get("", {}))
        for middle, part in parts.items():
            # 1.5.jpg is a record beside 1.jpg if it has a caption, and 1.seg.png a part of that.
            if not middle or not has_image or (_has_image(part) and part.keys() & CAPTION_SUFFIXES):
                yield key + middle, part


def _has_image(group: _Group) -> bool:
    return any(suffix in IMAGE_SUFFIXES for suffix in group)


def _has_folder(names: Sequence[str], folder: str) -> bool:
    """Whether one of the sorted names is in a folder."""
    place = bisect.bisect(names, f"{folder}/")
    return place < len(names) and names[place].startswith(f"{folder}/")


def _resolve(member: Member, members: Mapping[str, Member]) -> Member:
    for _ in range(MAX_LINKS):
        if not member.target or member.target not in members:
            break
        member = members[member.target]
    return member


def _read_group(
    file: BinaryIO, path: str, name: str, group: _Group, keys: Keys
) -> Iterator[Record | BadRecordError]:
    """One record for each image, or one problem."""
    images = [group[suffix] for suffix in group if suffix in IMAGE_SUFFIXES]
    others = [suffix for suffix in group if suffix in OTHER_IMAGE_SUFFIXES]
    where = posixpath.join(path, images[0][0] if images else name)
    try:
        if not images:
            raise BadRecordError(
                f"{where}: {not_readable(others[0])}"
                if others
                else f"{where}: no image ({', '.join(IMAGE_SUFFIXES)})"
            )
        captions = _captions(file, where, group, keys)
    except BadRecordError as error:
        yield error
        return
    for image, member in images:
        where = posixpath.join(path, image)
        try:
            yield make_record(read_member(file, member, where, MAX_FILE_BYTES), captions, where)
        except BadRecordError as error:
            yield error


def _captions(file: BinaryIO, where: str, group: _Group, keys: Keys) -> Any:
    suffix = ".json" if keys.caption_key else ".txt"
    if suffix not in group:
        wanted = f"no .json with {keys.caption_key!r}" if keys.caption_key else "no .txt file"
        if ".json" in group and not keys.caption_key:
            wanted += ": for captions in .json, add --caption-key"
        raise BadRecordError(f"{where}: no caption: {wanted}")
    name, member = group[suffix]
    content = read_member(file, member, name, MAX_CAPTIONS_BYTES)
    if not keys.caption_key:
        return content.splitlines()
    about = parse_json(content, f"{where}: no caption")
    if not isinstance(about, dict) or keys.caption_key not in about:
        raise BadRecordError(f"{where}: no caption: no .json with {keys.caption_key!r}")
    return about[keys.caption_key]
