"""A lock on a run folder, against a second training in it.

Local folders: a lock of the operating system on a file, which a killed process releases; on
network file systems it is as good as their locks, and without any a warning says so. In buckets a
file is rewritten as long as the training lives: whoever finds one watches it, and takes it over if
nothing changes.
"""

import errno
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from glide_jax.errors import UserError
from glide_jax.storage import AnyPath, storage_errors

logger = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Errors of network file systems without locks, or whose lock service is down."""

LOCK = ".lock"
"""Its file in a run folder."""

REWRITE_S = 10.0
"""Interval in which a training rewrites its lock in a bucket."""

MISSED_REWRITES = 3
"""A lock that missed this many is of a killed training."""


@contextmanager
def sole_training(folder: AnyPath, *, lead: bool = True) -> Iterator[None]:
    """Locks a run folder until left, or until this process ends.

    A folder that still has no other file when the lock is left is removed: its run never started.

    Args:
        folder: a run folder, created if missing.
        lead: whether this process is the one of its run that locks; the others do nothing.

    Raises:
        UserError: another training runs in the folder, or it cannot be written.
    """
    if not lead:
        yield
        return
    with storage_errors("write the run folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    locked = _locked_file(folder) if isinstance(folder, Path) else _locked_object(folder / LOCK)
    with locked:
        yield


def in_use(folder: AnyPath) -> UserError:
    """The error of a folder with another training."""
    return UserError(
        f"another training runs in {folder}: wait for its end, or give another --train.run-dir"
    )


@contextmanager
def _locked_file(folder: Path) -> Iterator[None]:
    file = folder / LOCK
    lock = filelock.FileLock(file, blocking=False)
    with storage_errors("write the run folder", folder):
        try:
            lock.acquire()
        except filelock.Timeout:
            raise in_use(folder) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logger.warning(
                "%s: its file system has no locks (%s): start no second training there",
                folder,
                error.strerror,
            )
    try:
        yield
    finally:
        with suppress(OSError):  # somebody may have deleted the folder
            if list(folder.iterdir()) == [file]:
                file.unlink()
                folder.rmdir()
        lock.release()


@contextmanager
def _locked_object(file: AnyPath) -> Iterator[None]:
    """Locks by a file that changes every REWRITE_S seconds."""
    owner = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}"
    with storage_errors("write the run folder", file.parent):
        _wait_while_alive(file)
        file.write_text(f"{owner} 0", encoding="utf-8")
        time.sleep(REWRITE_S / 10)  # of two that start at once, the last one to write has it
        if file.read_text(encoding="utf-8") != f"{owner} 0":
            raise in_use(file.parent)
    ended = threading.Event()

    def rewrite() -> None:
        count = 0
        while not ended.wait(REWRITE_S):
            count += 1
            with suppress(Exception):  # a network that fails for a moment; the next time may do
                file.write_text(f"{owner} {count}", encoding="utf-8")

    thread = threading.Thread(target=rewrite, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(Exception):
            file.unlink()


def _wait_while_alive(file: AnyPath) -> None:
    """Returns once a lock's owner is known to be gone. Raises UserError if it rewrites it."""
    if not file.exists():
        return
    first = file.read_text(encoding="utf-8")
    deadline = time.monotonic() + MISSED_REWRITES * REWRITE_S
    while time.monotonic() < deadline:
        time.sleep(REWRITE_S / 10)
        if not file.exists():
            return
        if file.read_text(encoding="utf-8") != first:
            raise in_use(file.parent)
