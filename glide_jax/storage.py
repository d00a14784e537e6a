"""Run folders on the local disk or in Google Cloud Storage, behind one interface.

Local paths are pathlib's, bucket paths etils.epath's, as in orbax. A bucket differs in three ways:
a file appears only when complete, files cannot be appended to, and folders cannot be renamed.
"""

import codecs
import errno
import importlib.util
import logging
import os
import posixpath
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
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
    """Parses a local path, whose `~` is expanded, or a gs://BUCKET/FOLDER URL.

    Raises:
        UserError: the URL has another scheme, gcsfs is not installed, or `~` is unknown.
    """
    text = expand_home(place)
    if "://" not in text:
        return Path(text)
    if not text.startswith(GCS_PREFIX):
        raise UserError(f"{text}: use a local folder or {GCS_PREFIX}BUCKET/FOLDER")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{text} needs gcsfs: pip install -e '.[gcs]'")
    # Other processes write to the bucket too, so a cached listing may be stale.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(text)


def expand_home(place: str | os.PathLike[str]) -> str:
    """A path with its `~` or `~user` expanded as shells do; a URL as it is.

    Shells leave the `~` of --out=~/x.png, and nothing expands those in configurations.

    Raises:
        UserError: the home directory is unknown.
    """
    expanded = os.path.expanduser(place)
    if expanded == "~" or expanded.startswith("~/"):
        raise UserError(f"{expanded}: the home directory is unknown: set HOME, or give a full path")
    return expanded


def cache_folder() -> Path:
    """Folder of files that can be made again: glide_jax in $XDG_CACHE_HOME, or in ~/.cache.

    Raises:
        UserError: the home directory is unknown.
    """
    return Path(expand_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "glide_jax"


def text_lines(content: bytes) -> list[str]:
    """The lines of a UTF-8 text, without a byte order mark.

    Lines end at LF, CRLF or CR. `str.splitlines` also splits at characters of a caption, such as
    U+2028.

    Raises:
        UnicodeDecodeError: not UTF-8.
    """
    return [line.decode() for line in content.removeprefix(codecs.BOM_UTF8).splitlines()]


def require_file(flag: str, path: Path | None, suffixes: Sequence[str] = ()) -> None:
    """Checks, before a long computation, that an output file can be written.

    Args:
        flag: that names the file.
        path: the file; None for none.
        suffixes: one of these must end its name, in upper or lower case; none allows all.

    Raises:
        UserError: a URL, a folder, another suffix, or no permission to write it.
    """
    if path is None:
        return
    _require_creatable(flag, path, path.absolute().parents)
    if suffixes and path.suffix.lower() not in suffixes:
        raise UserError(f"{flag} {path}: the name must end in {', '.join(suffixes)}")
    if path.is_dir():
        raise UserError(f"{flag} {path}: is a folder: give the name of a file")


def require_folder(flag: str, path: AnyPath) -> None:
    """Checks, before a long computation, that an output folder can be created or written.

    Args:
        flag: that names the folder.
        path: the folder; one in a bucket is not checked.

    Raises:
        UserError: a URL as a local path, a file, or no permission to write it.
    """
    if isinstance(path, Path):
        _require_creatable(flag, path, [path, *path.absolute().parents])


def _require_creatable(flag: str, path: Path, folders: Iterable[Path]) -> None:
    """Checks that a file can be created in the first of these folders, once all of them exist."""
    if path.parts and path.parts[0].endswith(":"):  # Path turns a URL into a local folder `gs:`
        url = path.as_posix().replace(":/", "://", 1)
        raise UserError(f"{flag} {url}: use a local file or folder")
    for folder in folders:
        try:
            mode = folder.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise UserError(f"{flag} {path}: {error.strerror}") from None
        if not stat.S_ISDIR(mode):
            raise UserError(f"{flag} {path}: {folder} is a file, not a folder")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"{flag} {path}: no permission to write in {folder}")
        return


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
    absolute = path.startswith("/") or PureWindowsPath(name).is_absolute()
    if absolute or os.path.splitdrive(path)[0] or path.split("/")[0] in ("..", "."):
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


def read_regular(path: AnyPath, max_bytes: int) -> bytes:
    """The content of a regular file, of a link to one, or of a file in a bucket.

    Raises:
        OSError: it cannot be read, is larger than `max_bytes`, or is not a regular file: reading
            a pipe may block, and reading a device may never end.
    """
    if not isinstance(path, Path):
        if path.stat().length > max_bytes:
            raise OSError(errno.EFBIG, f"larger than {max_bytes / 1e6:,.0f} MB", str(path))
        return bytes(path.read_bytes())
    with open(path, "rb", opener=_open_at_once) as file:
        state = os.fstat(file.fileno())  # of the open file, and no further request to a server
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if state.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"larger than {max_bytes / 1e6:,.0f} MB", str(path))
        return file.read(state.st_size)  # not max_bytes, which Python would allocate


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file. A pipe without a writer would block."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


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
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except BaseException:  # a full disk, Ctrl-C
        unfinished.unlink(missing_ok=True)
        raise


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


def unused(path: AnyPath) -> AnyPath:
    """This path, with a number appended if it already exists."""
    candidates = [path, *(path.with_name(f"{path.name}{i}") for i in range(2, 1000))]
    return next(candidate for candidate in candidates if not candidate.exists())


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
