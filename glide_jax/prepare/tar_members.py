"""The members of a tar: a first pass reads their headers, the contents are read when asked for.

tarfile (standard library) parses headers; what it does not bound is bounded here.
"""

import os
import posixpath
import tarfile
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from glide_jax.data.folder_index import IMAGE_SUFFIXES
from glide_jax.data.records import BadRecordError
from glide_jax.prepare.units import first_line

MAX_HEADER_BYTES = 2**20
"""Size of a member's header with its extensions, such as long names."""
MAX_NAME_CHARS = 4096
"""Length of a member's path. Compressed, a million long ones take few bytes."""


class Member(NamedTuple):
    """A file in a tar, or a link."""

    offset: int
    size: int
    sparse: tuple[tuple[int, int], ...] | None = None
    """Offsets and sizes of the stored parts of a sparse file."""
    target: str = ""
    """A link's target, as a path in the tar."""


@dataclass
class Contents:
    """What a tar holds."""

    members: dict[str, Member] = field(default_factory=dict)
    """By path, in the order of the tar."""
    last: str = ""
    """Path of the last member."""
    problem: str = ""
    """Why the end of the tar is missing."""
    skipped: int = 0
    """Blocks that are neither headers nor content."""
    long_names: int = 0
    """Members with names or links longer than `MAX_NAME_CHARS`."""
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


def list_members(file: BinaryIO) -> Contents:
    """Reads the headers of all members. Content that is missing at the end is a problem."""
    contents = Contents()
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


def _add_member(contents: Contents, header: tarfile.TarInfo, size: int) -> None:
    if max(len(header.name), len(header.linkname)) > MAX_NAME_CHARS:
        contents.long_names += 1
        return
    name = _inside(header.name)
    if header.isdir() or posixpath.basename(name).startswith("."):
        return
    if header.issym():
        folder = "/" if header.linkname.startswith("/") else posixpath.dirname(name)
        target = _inside(posixpath.join(folder, header.linkname))
        member = Member(header.offset, 0, target=target)
    elif header.islnk():  # to an earlier member, even if a later one has its name
        target = _inside(header.linkname)
        earlier = contents.members.get(target)
        member = earlier or Member(header.offset, 0, target=target)
    elif header.isdev():
        member = Member(header.offset, -1)
    else:
        sparse: Any = None if header.sparse is None else tuple(header.sparse)
        stored = header.size if sparse is None else sum(count for _, count in sparse)
        if header.offset_data + stored > size:
            return  # tarfile reports the missing content
        member = Member(header.offset_data, header.size, sparse)
    if name in contents.members and posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES:
        contents.replaced.append(name)
    contents.members[name] = member
    contents.last = name


def _inside(name: str) -> str:
    """A member's name as a path inside the tar, as tar extracts it."""
    return posixpath.normpath(f"/{name}").lstrip("/")


def read_member(file: BinaryIO, member: Member, name: str, max_bytes: int) -> bytes:
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
