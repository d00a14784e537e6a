"""Inputs of `prepare`: folders, tars and parquet files, divided into units of work.

Tars are in webdataset format, as written by img2dataset: consecutive files 000000001.jpg, .txt and
.json, which share a name up to the first dot. Folders are those of source=folder. Paths other than
folders may be URLs that fsspec can open, such as gs://bucket/part-*.tar.
"""

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import fsspec

from glide_jax.data.folder import IMAGE_SUFFIXES, read_index
from glide_jax.data.records import BadRecordError, Record, clean_captions
from glide_jax.errors import UserError
from glide_jax.images import MAX_FILE_BYTES
from glide_jax.storage import expand_home, read_regular

UNIT_RECORDS = 5000
"""Maximum images of a folder, and minimum rows of a parquet file, in a unit. A tar is one unit."""


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
        problems: folder: problems found by its index.
    """

    kind: Literal["folder", "tar", "parquet"]
    path: str
    state: int
    groups: tuple[int, ...] = ()
    entries: tuple[tuple[str, tuple[str, ...]], ...] = ()
    problems: tuple[str, ...] = ()


def find_units(paths: Sequence[str], keys: Keys) -> list[Unit]:
    """Lists the units of all inputs, in deterministic order.

    Args:
        paths: folders of images, tars or parquet files; such files; patterns such as *.tar.
        keys: checked against the columns of parquet files.

    Raises:
        UserError: an input does not exist, has an unknown type, or lacks a column.
    """
    return [unit for path in paths for unit in _units_of(path, keys)]


def read_unit(unit: Unit, keys: Keys) -> Iterator[Record | BadRecordError]:
    """Reads the records of a unit in order, without decoding. Yields errors for broken ones."""
    yield from map(BadRecordError, unit.problems)
    if unit.kind == "folder":
        yield from _read_folder(unit)
    elif unit.kind == "tar":
        yield from _read_tar(unit.path, keys)
    else:
        yield from _read_parquet(unit, keys)


# Listing --------------------------------------------------------------------------------------


def _units_of(path: str, keys: Keys) -> list[Unit]:
    folder = Path(expand_home(path))
    if folder.is_dir():
        # img2dataset writes a .parquet with metadata next to each tar, so tars take precedence.
        files = sorted(map(str, folder.glob("*.tar")))
        if not files and not any(p.is_dir() and p.name[0] != "." for p in folder.iterdir()):
            files = sorted(map(str, folder.glob("*.parquet")))
        if not files:
            return _folder_units(folder)
    else:
        files = _matching_files(path)
    units: list[Unit] = []
    for file in files:
        if file.endswith(".tar"):
            units.append(Unit("tar", file, _size(file)))
        elif file.endswith(".parquet"):
            units += _parquet_units(file, keys)
        else:
            raise UserError(f"--from {file}: must be a folder or a .tar or .parquet file")
    return units


def _matching_files(path: str) -> list[str]:
    try:
        filesystem, _ = fsspec.url_to_fs(path)
        files = sorted(filesystem.glob(path))
    except (OSError, ValueError, ImportError) as error:  # ImportError: no library for a protocol
        raise UserError(f"--from {path}: {error}") from None
    if not files:
        raise UserError(f"--from {path}: no such file or folder")
    return [filesystem.unstrip_protocol(file) if "://" in path else file for file in files]


def _size(file: str) -> int:
    filesystem, path = fsspec.url_to_fs(file)
    return int(filesystem.size(path))


def _folder_units(folder: Path) -> list[Unit]:
    entries, problems = read_index(folder)
    if not entries and not problems:
        raise UserError(
            f"--from {folder}: has no tars, parquet files or images ({', '.join(IMAGE_SUFFIXES)})"
        )
    parts = [
        tuple(entries[i : i + UNIT_RECORDS]) for i in range(0, max(1, len(entries)), UNIT_RECORDS)
    ]
    return [
        Unit(
            "folder",
            str(folder),
            sum(_size_or_none(folder / path) for path, _ in part),
            entries=part,
            problems=() if number else tuple(problems),
        )
        for number, part in enumerate(parts)
    ]


def _size_or_none(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # reported when it is read
        return 0


def _parquet_units(file: str, keys: Keys) -> list[Unit]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with fsspec.open(file, "rb") as opened:
            metadata = pq.ParquetFile(opened).metadata
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"--from {file}: cannot read as parquet: {_line(error)}") from None
    columns = metadata.schema.to_arrow_schema().names
    for flag, column in (("image", keys.image_column), ("caption", keys.caption_column)):
        if column not in columns:
            raise UserError(
                f"--{flag}-column {column}: not in {file}: choose from {', '.join(columns)}"
            )
    units, groups, rows = [], [], 0
    for group in range(metadata.num_row_groups):
        groups.append(group)
        rows += metadata.row_group(group).num_rows
        if rows >= UNIT_RECORDS or group == metadata.num_row_groups - 1:
            units.append(Unit("parquet", file, _size(file), groups=tuple(groups)))
            groups, rows = [], 0
    return units


# Reading --------------------------------------------------------------------------------------


def _read_folder(unit: Unit) -> Iterator[Record | BadRecordError]:
    for path, captions in unit.entries:
        name = os.path.join(unit.path, path)
        try:
            yield Record(read_regular(Path(name), MAX_FILE_BYTES), captions, name)
        except OSError as error:
            yield BadRecordError(f"{name}: {error.strerror}")


def _read_tar(path: str, keys: Keys) -> Iterator[Record | BadRecordError]:
    """Yields complete records. A truncated tar is one further problem at the end."""
    records, problem = 0, ""
    name, group = "", dict[str, bytes]()
    try:
        with fsspec.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                base = os.path.basename(member.name)
                opened = tar.extractfile(member)
                if opened is None or base.startswith("."):  # a folder, a link, or hidden
                    continue
                content = opened.read()
                stem, _, suffix = base.partition(".")
                stem = os.path.join(path, os.path.dirname(member.name), stem)
                if stem != name and group:
                    yield _of_tar(name, group, keys)
                    records, group = records + 1, {}
                name = stem
                group[f".{suffix.lower()}"] = content
        if not _is_complete(path):
            problem = "no end marker"
    except (tarfile.TarError, EOFError) as error:
        problem = _line(error)
    if group and not problem:
        yield _of_tar(name, group, keys)
    if problem:
        yield BadRecordError(f"{path}: truncated or damaged after {records} records ({problem})")


def _is_complete(path: str) -> bool:
    """Whether a tar ends in two blocks of zeros, which tarfile does not check."""
    with fsspec.open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2 * tarfile.BLOCKSIZE))
        return not any(file.read())


def _of_tar(name: str, group: dict[str, bytes], keys: Keys) -> Record | BadRecordError:
    images = [suffix for suffix in group if suffix in IMAGE_SUFFIXES]
    if not images:
        return BadRecordError(f"{name}: no image ({', '.join(IMAGE_SUFFIXES)})")
    name += images[0]
    captions: Any
    if not keys.caption_key:
        if ".txt" not in group:
            return BadRecordError(f"{name}: no caption: no .txt file")
        captions = group[".txt"].splitlines()
    else:
        try:
            captions = json.loads(group[".json"])[keys.caption_key]
        except (KeyError, ValueError, TypeError):
            return BadRecordError(f"{name}: no caption: no .json with {keys.caption_key!r}")
    return _record(group[images[0]], captions, name)


def _read_parquet(unit: Unit, keys: Keys) -> Iterator[Record | BadRecordError]:
    """Yields complete records. The damaged rest of a row group is one further problem."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [keys.image_column, keys.caption_column]
    # Without a buffer, a complete row group would be read into memory.
    with fsspec.open(unit.path, "rb") as file, pq.ParquetFile(file, buffer_size=2**20) as table:
        for group in unit.groups:
            row, rows = 0, table.metadata.row_group(group).num_rows
            where = f"{unit.path} row group {group}"
            try:
                for batch in table.iter_batches(64, row_groups=[group], columns=columns):
                    images, captions = (batch.column(name).to_pylist() for name in columns)
                    for image, caption in zip(images, captions, strict=True):
                        content = image["bytes"] if isinstance(image, dict) else image
                        yield _record(content, caption, f"{where} row {row}")
                        row += 1
            except (pa.ArrowException, OSError) as error:
                if isinstance(error, OSError) and error.errno:
                    raise  # a disk or network error, possibly temporary
                why = f"{_line(error)}; {rows - row} rows are lost"
                yield BadRecordError(f"{where}: damaged after {row} rows ({why})")


def _record(image: Any, captions: Any, name: str) -> Record | BadRecordError:
    """A record, or an error if image or captions have the wrong type."""
    if not isinstance(image, bytes):
        return BadRecordError(f"{name}: the image is {type(image).__name__}, not bytes")
    texts = captions if isinstance(captions, list) else [captions]
    if not all(isinstance(text, (str, bytes)) for text in texts):
        return BadRecordError(f"{name}: the caption is not a string or a list of strings")
    try:
        return Record(image, clean_captions(texts, name), name)
    except BadRecordError as error:
        return error


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
