"""The files of a folder of shards, local or remote, as its shards.json lists them.

Remote shards are downloaded on first use. shards.json is checked when it is read, and all shards
against it before training starts, so a missing or truncated one is an error at once.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import fsspec

from glide_jax.errors import UserError
from glide_jax.storage import cache_folder, expand_home, plain_name, read_regular

INDEX_FILE = "shards.json"
MAX_INDEX_BYTES = 2**26
"""Size of shards.json. An entry takes about 100 bytes."""


def shard_cache(given: str) -> Path:
    """The local folder for downloaded shards, given a setting cache_dir."""
    return Path(expand_home(given)) if given else cache_folder() / "shards"


@dataclass(frozen=True)
class Shard:
    """One shard file: its name in the folder, without a path, and its contents."""

    file: str
    records: int
    bytes: int


class ShardFolder:
    """The files of a folder of shards, local or downloaded on demand.

    Args:
        folder: a path or a URL.
        cache_dir: local folder for downloaded shards.
        command: that writes such folders, for errors.

    Raises:
        UserError: the folder cannot be read.
    """

    def __init__(self, folder: str, cache_dir: Path, command: str = "prepare") -> None:
        self.url = folder.rstrip("/")
        self._is_remote = "://" in folder
        # Each protocol raises many exception types of its own, and ImportError, with the name, if
        # its library is missing.
        try:
            self._filesystem, self._root = fsspec.url_to_fs(self.url)
            self.index = json.loads(self._read_index())
            self._splits = _parse_splits(self.index["splits"])
        except FileNotFoundError:
            raise UserError(
                f"data.source.path {folder}: has no {INDEX_FILE}: create the folder with "
                f"python -m glide_jax.{command}"
            ) from None
        except Exception as error:
            raise UserError(
                f"data.source.path {folder}: cannot read {INDEX_FILE}: {_line(error)}"
            ) from None
        # Data prepared again under the same URL must not reuse the old downloads.
        data = f"{self.url} {self.index.get('fingerprint')}"
        key = hashlib.sha256(data.encode(errors="surrogatepass")).hexdigest()
        self._cache = cache_dir / key[:16]

    def shards(self, split: str) -> list[Shard]:
        """The shards of a split, checked to exist with their recorded sizes.

        Raises:
            UserError: no such split, or a file is missing or has the wrong size.
        """
        if split not in self._splits:
            raise UserError(
                f"data.source.path {self.url} has no split {split!r}: choose "
                f"{', '.join(self._splits)}"
            )
        shards = self._splits[split]
        sizes = self._sizes()
        for shard in shards:
            size = sizes.get(shard.file) or self._size(shard.file)
            if size != shard.bytes:
                found = "is missing" if size is None else f"has {size:,} bytes"
                raise UserError(
                    f"{self.url}/{shard.file} {found}, but {INDEX_FILE} says {shard.bytes:,} "
                    "bytes: copy it again, or prepare the folder again"
                )
        return shards

    def local_path(self, shard: Shard) -> Path:
        """The local path of a shard. A remote shard is downloaded on first use.

        Raises:
            UserError: the download failed.
        """
        if not self._is_remote:
            return Path(self._root) / shard.file
        copy = self._cache / shard.file
        unfinished = copy.with_name(f"{copy.name}.unfinished")
        try:
            if copy.exists():
                return copy
            self._cache.mkdir(parents=True, exist_ok=True)
            # Other processes and threads on this machine may need the same shard.
            with filelock.FileLock(f"{copy}.lock"):
                if not copy.exists():
                    self._filesystem.get_file(
                        f"{self._root}/{shard.file}", str(unfinished), callback=_AtMost(shard.bytes)
                    )
                    size = unfinished.stat().st_size
                    if size != shard.bytes:
                        raise OSError(f"received {size:,} of {shard.bytes:,} bytes")
                    unfinished.replace(copy)
        except Exception as error:
            raise UserError(
                f"cannot copy {self.url}/{shard.file} to {self._cache}: {_line(error)}"
            ) from None
        return copy

    def _read_index(self) -> bytes:
        path = f"{self._root}/{INDEX_FILE}"
        if not self._is_remote:
            return read_regular(Path(path), MAX_INDEX_BYTES)
        with self._filesystem.open(path, "rb") as file:
            content: bytes = file.read(MAX_INDEX_BYTES + 1)
        if len(content) > MAX_INDEX_BYTES:
            raise ValueError(f"larger than {MAX_INDEX_BYTES:,} bytes")
        return content

    def _sizes(self) -> dict[str, int | None]:
        """File sizes by name, empty if the folder cannot be listed."""
        try:
            entries = self._filesystem.ls(self._root, detail=True)
        except Exception:  # not every web server lists folders
            return {}
        return {os.path.basename(entry["name"]): entry["size"] for entry in entries}

    def _size(self, file: str) -> int | None:
        try:
            return int(self._filesystem.size(f"{self._root}/{file}"))
        except Exception:
            return None


def _parse_splits(splits: Any) -> dict[str, list[Shard]]:
    """The shards of each split. Raises ValueError or TypeError."""
    parsed = {split: [_parse_shard(shard) for shard in splits[split]] for split in splits}
    files = [shard.file for shards in parsed.values() for shard in shards]
    if len(set(files)) < len(files):
        raise ValueError("a file is listed twice")
    for split, shards in parsed.items():
        if not shards:
            raise ValueError(f"split {split!r} has no shards")
    return parsed


def _parse_shard(value: Any) -> Shard:
    if not isinstance(value, dict) or set(value) != {"file", "records", "bytes"}:
        raise ValueError("a shard needs file, records and bytes")
    file, records, size = plain_name(value["file"]), value["records"], value["bytes"]
    if type(records) is not int or type(size) is not int:
        raise ValueError(f"records and bytes of {file} must be integers")
    if not 0 <= records < size:
        raise ValueError(f"{file} cannot hold {records:,} records in {size:,} bytes")
    return Shard(file, records, size)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


class _AtMost(fsspec.Callback):
    """Ends a download that is longer than announced."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        if self.value > self._limit:
            raise OSError(f"received more than {self._limit:,} bytes")
