"""Run folders on the local disk or in Google Cloud Storage, behind one interface.

Local paths are pathlib's, bucket paths etils.epath's, as in orbax. A bucket differs in three ways:
a file appears only when complete, files cannot be appended to, and folders cannot be renamed.
"""

import errno
import importlib.util
import logging
import os
import posixpath
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import TypeAlias

import fsspec
from etils import epath

from glide_jax.errors import UserError

AnyPath: TypeAlias = Path | epath.Path
"""A file or folder, local (Path) or in a bucket."""

GCS_PREFIX = "gs://"
MAX_NAME_BYTES = 255
"""Longest name of a file or folder on the usual file systems."""

# gcsfs logs a traceback for every error that it also raises.
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


def path_of(place: str | os.PathLike[str]) -> AnyPath:
    """Parses a local path or a gs://BUCKET/FOLDER URL.

    Raises:
        UserError: the URL has another scheme, or gcsfs is not installed.
    """
    text = os.fspath(place)
    if "://" not in text:
        return Path(text)
    if not text.startswith(GCS_PREFIX):
        raise UserError(f"{text}: use a local folder or {GCS_PREFIX}BUCKET/FOLDER")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{text} needs gcsfs: pip install -e '.[gcs]'")
    # Other processes write to the bucket too, so a cached listing may be stale.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(text)


def require_local(*paths: Path | None) -> None:
    """Checks that output paths are local. `Path` would turn a URL into a local folder `gs:`.

    Raises:
        UserError: a path is a URL.
    """
    for path in paths:
        if path is not None and path.parts and path.parts[0].endswith(":"):
            url = path.as_posix().replace(":/", "://", 1)
            raise UserError(f"{url}: use a local file or folder")


@contextmanager
def storage_errors(action: str, path: AnyPath | str) -> Iterator[None]:
    """Turns any storage failure into the UserError `cannot ACTION PATH: reason`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # gcsfs, google-auth and aiohttp raise many kinds
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if str(path).startswith(GCS_PREFIX) and isinstance(error, FileNotFoundError):
            reason = "no such bucket or object"
        raise UserError(f"cannot {action} {path}: {reason}") from error


def relative_path(name: object) -> str:
    """Checks a file's name that was read from an index or archive: a path inside its folder.

    Returns:
        The name, with '/', without '.' and '..'.

    Raises:
        ValueError: not a string, empty, absolute, outside the folder, or not a valid file name.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"{_shown(name)} is not a file name")
    path = posixpath.normpath(name.replace(os.sep, "/"))
    if path.startswith("/") or PureWindowsPath(name).drive or path.split("/")[0] in ("..", "."):
        raise ValueError(f"{_shown(name)} is not a path inside the folder")
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        raise ValueError(f"{_shown(name)} is not a file name") from None
    if b"\0" in encoded:
        raise ValueError(f"{_shown(name)} is not a file name")
    if max(map(len, encoded.split(b"/"))) > MAX_NAME_BYTES:
        raise ValueError(f"{_shown(name)} is longer than {MAX_NAME_BYTES} bytes")
    return path


def plain_name(name: object) -> str:
    """Checks a file's name that was read from an index: one without folders.

    Raises:
        ValueError: as `relative_path`; or the name contains a slash or a control character.
    """
    path = relative_path(name)
    if path != name or "/" in path or "\\" in path or not path.isprintable():
        raise ValueError(f"{_shown(name)} is not a plain file name")
    return path


def read_regular(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file, or of a link to one.

    Raises:
        OSError: it cannot be read, is larger than `max_bytes`, or is not a regular file: reading
            a pipe may block, and reading a device may never end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {max_bytes / 1e6:,.0f} MB", str(path))
    return content


def _shown(name: object) -> str:
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:77]}..."


def write_atomically(path: AnyPath, content: bytes) -> None:
    """Writes a complete file or none. Creates missing parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(path, Path):
        path.write_bytes(content)
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def move_folder(folder: AnyPath, to: AnyPath, marker: str) -> None:
    """Renames a folder. If interrupted in a bucket, one of the two folders stays complete.

    Args:
        folder: an existing folder.
        to: a path that does not exist yet.
        marker: name of the file that marks a folder as complete; removed from `folder` first.
    """
    if isinstance(folder, Path):
        folder.rename(to)
        return
    files, source = fsspec.url_to_fs(str(folder))
    files.copy(source, str(to), recursive=True)
    files.rm_file(f"{source}/{marker}")
    files.rm(source, recursive=True)


class MirroredFolder:
    """A local folder for appendable files, mirrored to a bucket where the folder is in one.

    Args:
        folder: the destination. If it is local, files are written there directly.
        names: existing files to continue, downloaded first.

    Raises:
        UserError: the files cannot be read.
    """

    def __init__(self, folder: AnyPath, names: Sequence[str] = ()) -> None:
        self._bucket: epath.Path | None = None
        if isinstance(folder, Path):
            self.path: Path = folder
            """The local folder to write to."""
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
        """Uploads files that changed since the last call. Raises UserError."""
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
        """Uploads once more and removes the temporary local folder. Raises UserError."""
        if self._bucket is not None:
            with self._temporary:
                self.copy()
