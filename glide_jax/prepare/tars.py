"""Records of tars in webdataset format, as written by img2dataset: 000000001.jpg, .txt and .json.

Files of a record share a name up to the first dot, and may be anywhere in the tar. A first pass
reads the headers of all members, a second one the records. Links are followed within the tar, of
equal names the last is read, and further tars may be appended. tarfile (standard library) parses
headers; what it does not bound is bounded here.
"""

import bz2
import gzip
import lzma
import os
import posixpath
import tarfile
import tempfile
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from glide_jax.data.folder_index import (
    IMAGE_SUFFIXES,
    MAX_CAPTIONS_BYTES,
    OTHER_IMAGE_SUFFIXES,
    not_readable,
)
from glide_jax.data.records import BadRecordError, Record, parse_json
from glide_jax.images import MAX_FILE_BYTES
from glide_jax.prepare.units import Keys, first_line, is_remote, make_record, open_input

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_HEADER_BYTES = 2**20
"""Size of a member's header with its extensions, such as long names."""
MAX_EXPANSION = 100
"""Ratio of the decompressed to the compressed size of tars above `MIN_EXPANDED_BYTES`."""
MIN_EXPANDED_BYTES = 2**30
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
        contents = _list_members(file)
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


# Members --------------------------------------------------------------------------------------


class _Member(NamedTuple):
    """A file in a tar, or a link."""

    offset: int
    size: int
    sparse: tuple[tuple[int, int], ...] | None = None
    """Offsets and sizes of the stored parts of a sparse file."""
    target: str = ""
    """A link's target, as a path in the tar."""


@dataclass
class _Contents:
    members: dict[str, _Member] = field(default_factory=dict)
    """By path, in the order of the tar."""
    last: str = ""
    """Path of the last member."""
    problem: str = ""
    """Why the end of the tar is missing."""
    skipped: int = 0
    """Blocks that are neither headers nor content."""
    replaced: list[str] = field(default_factory=list)
    """Names of images that a later member of the same name replaces."""


class _Header(tarfile.TarInfo):
    """A member's header, of bounded size. Counts invalid headers, which tarfile skips."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_Header":
        file: Any = tar.fileobj
        file.header_bytes = 0
        try:
            return super().fromtarfile(tar)
        except tarfile.InvalidHeaderError:  # type: ignore[attr-defined]
            file.invalid_headers += 1
            raise


class _HeaderFile:
    """The file as tarfile reads it: headers only."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.tell = file.tell
        self.header_bytes = 0
        self.invalid_headers = 0

    def seek(self, offset: int) -> int:
        if offset > self._size:
            raise tarfile.ReadError("unexpected end of data")
        return self._file.seek(offset)

    def read(self, size: int) -> bytes:
        self.header_bytes += size
        if size < 0 or self.header_bytes > MAX_HEADER_BYTES:
            raise tarfile.ReadError("a header is too long")
        return self._file.read(size)


def _list_members(file: BinaryIO) -> _Contents:
    """Reads the headers of all members. Content that is missing at the end is a problem."""
    contents = _Contents()
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    headers: Any = _HeaderFile(file, size)
    end = 0
    try:
        # Zeros are ignored: tars may be concatenated.
        tar: Any = tarfile.TarFile(
            fileobj=headers,
            tarinfo=_Header,
            ignore_zeros=True,
            encoding="utf-8",
            errors="surrogateescape",
        )
        while (header := tar.next()) is not None:
            if tar.offset <= end:
                raise tarfile.ReadError("a header leads backward")
            end = tar.offset
            tar.members.clear()  # which tarfile would collect
            _add_member(contents, header, size)
        if size - end < 2 * tarfile.BLOCKSIZE:
            contents.problem = "no end marker"
    except Exception as error:  # tarfile raises many types on malformed headers
        if isinstance(error, OSError) and error.errno:
            raise
        contents.problem = first_line(error)
    contents.skipped = headers.invalid_headers
    return contents


def _add_member(contents: _Contents, header: tarfile.TarInfo, size: int) -> None:
    name = _inside(header.name)
    if header.isdir() or posixpath.basename(name).startswith("."):
        return
    if header.issym():
        folder = "/" if header.linkname.startswith("/") else posixpath.dirname(name)
        target = _inside(posixpath.join(folder, header.linkname))
        member = _Member(header.offset, 0, target=target)
    elif header.islnk():  # to an earlier member, even if a later one has its name
        target = _inside(header.linkname)
        earlier = contents.members.get(target)
        member = earlier or _Member(header.offset, 0, target=target)
    elif header.isdev():
        member = _Member(header.offset, -1)
    else:
        sparse: Any = None if header.sparse is None else tuple(header.sparse)
        stored = header.size if sparse is None else sum(count for _, count in sparse)
        if header.offset_data + stored > size:
            return  # tarfile reports the missing content
        member = _Member(header.offset_data, header.size, sparse)
    if name in contents.members and posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES:
        contents.replaced.append(name)
    contents.members[name] = member
    contents.last = name


def _inside(name: str) -> str:
    """A member's name as a path inside the tar, as tar extracts it."""
    return posixpath.normpath(f"/{name}").lstrip("/")


def _read_member(file: BinaryIO, member: _Member, name: str, max_bytes: int) -> bytes:
    """The content of a file. Raises BadRecordError."""
    if member.target:
        raise BadRecordError(
            f"{name}: a link to {member.target}, which is no file of the tar: use tar -h"
        )
    if member.size < 0:
        raise BadRecordError(f"{name}: not a regular file")
    if member.size > max_bytes:
        raise BadRecordError(f"{name}: larger than {max_bytes / 1e6:,.0f} MB")
    file.seek(member.offset)
    if member.sparse is None:
        return file.read(member.size)
    content = bytearray(member.size)
    for start, count in member.sparse:
        if not 0 <= start <= start + count <= member.size:
            raise BadRecordError(f"{name}: a damaged sparse file")
        content[start : start + count] = file.read(count)
    return bytes(content[: member.size])


# Records --------------------------------------------------------------------------------------

_Group = dict[str, tuple[str, _Member]]
"""Files of a record, by suffix in lower case, with their names."""


def _groups(members: Mapping[str, _Member]) -> Iterator[tuple[str, _Group]]:
    """The names and files of all records."""
    groups: dict[str, _Group] = {}
    folders = set[str]()
    for name in members:
        while (name := posixpath.dirname(name)) and name not in folders:
            folders.add(name)
    for name, member in members.items():
        resolved = _resolve(member, members)
        if resolved.target in folders:  # whose files have names of their own
            continue
        folder, base = posixpath.split(name)
        stem, dot, suffix = base.partition(".")
        key = unicodedata.normalize("NFC", posixpath.join(folder, stem))
        suffix = (dot + suffix).lower()
        if suffix in groups.get(key, ()):  # x.JPG beside x.jpg
            key = name
        groups.setdefault(key, {})[suffix] = (name, resolved)
    for key, group in groups.items():
        if any(suffix in IMAGE_SUFFIXES for suffix in group):
            yield key, group
            continue
        # Names with other dots: 1.5.jpg and 1.5.txt.
        parts: dict[str, _Group] = defaultdict(dict)
        for suffix, file in group.items():
            middle, dot, last = suffix.rpartition(".")
            parts[middle][dot + last] = file
        for middle, part in parts.items():
            yield key + middle, part


def _resolve(member: _Member, members: Mapping[str, _Member]) -> _Member:
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
            yield make_record(_read_member(file, member, where, MAX_FILE_BYTES), captions, where)
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
    content = _read_member(file, member, name, MAX_CAPTIONS_BYTES)
    if not keys.caption_key:
        return content.splitlines()
    about = parse_json(content, f"{where}: no caption")
    if not isinstance(about, dict) or keys.caption_key not in about:
        raise BadRecordError(f"{where}: no caption: no .json with {keys.caption_key!r}")
    return about[keys.caption_key]
