"""Inputs of `prepare`: folders, tars and parquet files, divided into units of work.

Tars are those of glide_jax.prepare.tars, folders of images those of source=folder. Paths other than
folders may be URLs that fsspec can open, such as gs://bucket/part-*.tar.
"""

import logging
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from glide_jax.data.folder_index import (
    IMAGE_SUFFIXES,
    OTHER_METADATA_FILES,
    State,
    list_files,
    read_index,
)
from glide_jax.data.records import BadRecordError, Record, printable
from glide_jax.errors import UserError
from glide_jax.images import MAX_FILE_BYTES
from glide_jax.prepare.tables import read_metadata, read_table
from glide_jax.prepare.tars import TAR_SUFFIXES, read_tar
from glide_jax.prepare.units import Keys, Unit, first_line, is_remote
from glide_jax.storage import expand_home, read_regular

UNIT_RECORDS = 5000
"""Maximum images of a folder, and minimum rows of a parquet file, in a unit. A tar is one unit."""
TABLE_SUFFIX = ".parquet"
OTHER_ARCHIVES = (".zip", ".7z", ".rar", ".tar.zst", ".tar.lz4")

logger = logging.getLogger(__name__)


def find_units(paths: Sequence[str], keys: Keys) -> list[Unit]:
    """Lists the units of all inputs, in deterministic order.

    Args:
        paths: folders of images, tars or parquet files; such files; patterns such as *.tar.
        keys: checked against the columns of parquet files.

    Raises:
        UserError: an input does not exist or has an unknown type, or none of its files is usable.
    """
    return [unit for path in paths for unit in _units_of(path, keys)]


def read_unit(unit: Unit, keys: Keys) -> Iterator[Record | BadRecordError]:
    """Reads the records of a unit in order, without decoding. Yields errors for broken ones."""
    yield from map(BadRecordError, unit.problems)
    if unit.kind == "folder":
        yield from _read_folder(unit)
    elif unit.kind == "tar":
        yield from read_tar(unit.path, keys)
    elif unit.groups:
        yield from read_table(unit, keys)


def _units_of(path: str, keys: Keys) -> list[Unit]:
    folder = Path(expand_home(path))
    is_folder = os.path.isdir(folder)
    listed = list_files(folder) if is_folder else {}
    units: list[Unit] = []
    problems: list[tuple[str, str]] = []
    for file in _archives_of_folder(folder, listed) if is_folder else _matching_files(path):
        try:
            units += _units_of_file(file, keys)
        except BadRecordError as error:
            problems.append((file, str(error)))
        except OSError as error:
            raise UserError(f"--from {printable(file)}: {error.strerror or error}") from None
    if is_folder:
        units += _folder_units(folder, listed)
    if problems and not units:
        raise UserError(problems[0][1])
    if not units:
        raise UserError(
            f"--from {folder}: has no tars, parquet files or images ({', '.join(IMAGE_SUFFIXES)})"
        )
    return units + [Unit("parquet", file, 0, problems=(problem,)) for file, problem in problems]


def _archives_of_folder(folder: Path, files: Mapping[str, State]) -> list[str]:
    """Tars and parquet files of a folder and its subfolders, and archives that are not read."""
    # img2dataset writes a .parquet with metadata next to each tar or folder of images.
    tars = [name for name in files if name.lower().endswith(TAR_SUFFIXES)]
    described = {posixpath.splitext(name)[0].removesuffix(".tar") for name in tars}
    described |= {posixpath.dirname(name) for name in files}
    tables = [
        name
        for name in files
        if name.lower().endswith(TABLE_SUFFIX)
        and posixpath.basename(name) not in OTHER_METADATA_FILES
    ]
    metadata = [name for name in tables if posixpath.splitext(name)[0] in described]
    if metadata:
        logger.warning(
            "%s: %d parquet files have the name of a tar or folder: they are taken for its "
            "metadata and not read, such as %s",
            printable(str(folder)),
            len(metadata),
            printable(metadata[0]),
        )
    tables = [name for name in tables if posixpath.splitext(name)[0] not in described]
    others = [name for name in files if name.lower().endswith(OTHER_ARCHIVES)]
    return [str(folder / name) for name in tars + others + tables]


def _matching_files(path: str) -> list[str]:
    local = expand_home(path)
    if not is_remote(path) and os.path.exists(local):  # whose name may have the signs of a pattern
        return [os.path.abspath(local)]
    try:
        filesystem, inner = fsspec.url_to_fs(path)
        files = [inner] if is_remote(path) and filesystem.isfile(inner) else []
        files = files or sorted(filesystem.glob(inner))
    except Exception as error:  # of any type, by protocol
        raise UserError(f"--from {path}: {first_line(error)}") from None
    if not files:
        raise UserError(f"--from {path}: no such file or folder")
    if isinstance(filesystem, LocalFileSystem):
        return files
    return [filesystem.unstrip_protocol(file) for file in files]


def _units_of_file(file: str, keys: Keys) -> list[Unit]:
    """The units of a tar or parquet file. Raises BadRecordError if none can be read."""
    if not is_remote(file) and not os.path.isfile(file):
        raise BadRecordError(f"--from {file}: not a regular file")
    if file.lower().endswith(TAR_SUFFIXES):
        return [Unit("tar", file, _size(file))]
    if file.lower().endswith(TABLE_SUFFIX):
        return _table_units(file, keys)
    if file.lower().endswith(OTHER_ARCHIVES):
        raise BadRecordError(
            f"--from {file}: unpack it: archives must be {', '.join(TAR_SUFFIXES)}"
        )
    raise UserError(f"--from {printable(file)}: must be a folder or a .tar or .parquet file")


def _size(file: str) -> int:
    if not is_remote(file):
        return os.path.getsize(file)
    filesystem, path = fsspec.url_to_fs(file)
    return int(filesystem.size(path))


def _table_units(file: str, keys: Keys) -> list[Unit]:
    metadata = read_metadata(file)
    columns = metadata.schema.to_arrow_schema().names
    for flag, column in (("image", keys.image_column), ("caption", keys.caption_column)):
        if column not in columns:
            raise BadRecordError(
                f"--{flag}-column {column}: not in {file}: choose from {', '.join(columns)}"
            )
    units, groups, rows = [], [], 0
    for group in range(metadata.num_row_groups):
        groups.append(group)
        rows += metadata.row_group(group).num_rows
        if rows >= UNIT_RECORDS:
            units.append(Unit("parquet", file, _size(file), groups=tuple(groups)))
            groups, rows = [], 0
    if groups or not units:  # a file may have no row groups
        units.append(Unit("parquet", file, _size(file), groups=tuple(groups)))
    return units


def _folder_units(folder: Path, files: Mapping[str, State]) -> list[Unit]:
    """The units of a folder's images, of which there may be none."""
    entries, problems = read_index(folder, files)
    if not entries and not problems:
        return []
    parts = [
        tuple(entries[i : i + UNIT_RECORDS]) for i in range(0, max(1, len(entries)), UNIT_RECORDS)
    ]
    return [
        Unit(
            "folder",
            str(folder),
            sum(files[path][0] for path, _ in part if path in files),
            entries=part,
            problems=() if number else tuple(problems),
        )
        for number, part in enumerate(parts)
    ]


def _read_folder(unit: Unit) -> Iterator[Record | BadRecordError]:
    for path, captions in unit.entries:
        name = os.path.join(unit.path, path)
        try:
            content = read_regular(Path(name), MAX_FILE_BYTES)
            yield Record(content, captions, printable(name))
        except OSError as error:
            yield BadRecordError(f"{name}: {error.strerror}")
