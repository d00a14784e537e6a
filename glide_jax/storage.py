"""Run folders on this machine or in a bucket of Google Cloud Storage, with the same methods.

A path is pathlib's, in a bucket etils.epath's, as orbax has it. A bucket differs in three things: a
file appears when it is whole, none can be appended to, and no folder can be renamed.
"""

import importlib.util
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import fsspec
from etils import epath

from glide_jax.errors import UserError

AnyPath: TypeAlias = Path | epath.Path
"""Of a file or folder: here (Path) or in a bucket."""

GCS_PREFIX = "gs://"

# It logs with tracebacks what it raises as well.
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


def path_of(place: str | os.PathLike[str]) -> AnyPath:
    """The path that a text names: gs://BUCKET/FOLDER, or one of this machine.

    Raises:
        UserError: a URL of another kind, or what reads buckets is not installed.
    """
    text = os.fspath(place)
    if "://" not in text:
        return Path(text)
    if not text.startswith(GCS_PREFIX):
        raise UserError(f"{text}: give a folder of this machine, or {GCS_PREFIX}BUCKET/FOLDER")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{text} needs gcsfs: pip install -e '.[gcs]'")
    # Other processes write there too: what was listed once may have changed.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(text)


def require_local(*paths: Path | None) -> None:
    """Checks that what is to be written is of this machine: of a URL, Path makes a folder `gs:`.

    Raises:
        UserError: one of them is a URL.
    """
    for path in paths:
        if path is not None and path.parts and path.parts[0].endswith(":"):
            url = path.as_posix().replace(":/", "://", 1)
            raise UserError(f"{url}: give a file or folder of this machine")


@contextmanager
def storage_errors(what: str, path: AnyPath | str) -> Iterator[None]:
    """Makes any failure of storage the UserError `cannot WHAT PATH: why`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # gcsfs, google-auth and aiohttp raise many kinds
        why = " ".join(str(error).split())[:300] or type(error).__name__
        if str(path).startswith(GCS_PREFIX) and isinstance(error, FileNotFoundError):
            why = "no such bucket, or nothing of this name in it"
        raise UserError(f"cannot {what} {path}: {why}") from error


def write_atomically(path: AnyPath, content: bytes) -> None:
    """Writes a file, in folders made for it: all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(path, Path):
        path.write_bytes(content)
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def move_folder(folder: AnyPath, to: AnyPath, last: str) -> None:
    """Gives a folder another name. Interrupted in a bucket, one of the two is still whole.

    Args:
        folder: that is there.
        to: that is not there yet.
        last: name of its file without which it does not count as whole.
    """
    if isinstance(folder, Path):
        folder.rename(to)
        return
    files, source = fsspec.url_to_fs(str(folder))
    files.copy(source, str(to), recursive=True)
    files.rm_file(f"{source}/{last}")
    files.rm(source, recursive=True)


class MirroredFolder:
    """Where to write files that grow: a folder itself, or one here that is copied to a bucket.

    Args:
        folder: where they belong.
        names: of those of its files that go on.

    Raises:
        UserError: they cannot be read.
    """

    def __init__(self, folder: AnyPath, names: Sequence[str] = ()) -> None:
        self._bucket: epath.Path | None = None
        if isinstance(folder, Path):
            self.path: Path = folder
            """Where to write."""
            return
        self._bucket = folder
        self._temporary = tempfile.TemporaryDirectory(prefix="glide_jax_")
        self.path = Path(self._temporary.name)
        self._copied: dict[Path, tuple[int, int]] = {}
        with storage_errors("read", folder):
            for name in names:
                if (folder / name).exists():
                    (self.path / name).write_bytes((folder / name).read_bytes())

    def copy(self) -> None:
        """Copies to the bucket what has changed since the last time. Raises UserError."""
        if self._bucket is None:
            return
        for file in sorted(self.path.rglob("*")):
            state = (file.stat().st_size, file.stat().st_mtime_ns)
            if file.is_file() and self._copied.get(file) != state:
                copy = self._bucket / file.relative_to(self.path).as_posix()
                with storage_errors("write", copy):
                    copy.write_bytes(file.read_bytes())
                self._copied[file] = state

    def close(self) -> None:
        """Copies for the last time, and removes what was written here for it. Raises UserError."""
        if self._bucket is not None:
            with self._temporary:
                self.copy()
