"""Endings of commands: one line on stderr and an exit status, listed in docs/training.md."""

import errno
import logging
import os
import re
import reprlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

FAILED = 2
"""Exit status after a `UserError`."""

INTERRUPTED = 128 + signal.SIGINT
"""Exit status after Ctrl-C, as shells have it."""

OUTPUT_GONE = 141
"""Exit status, as shells have it, if the output's reader is gone: 128 + SIGPIPE."""

MACHINE_ERRORS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EPIPE, errno.EMFILE)
)
"""System errors that no code here causes, even if no file is named."""

REDELIVERED_AFTER_S = 0.02
"""Until a Ctrl-C that came in a callback is repeated: when the callback has ended."""

MAX_LINE_CHARS = 300


class UserError(Exception):
    """Invalid user input. The message names the input and the fix."""


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns what users can mend into one line on stderr and the exit status 2, Ctrl-C into 130.

    Standard streams that are closed are opened on the null device. Characters that the terminal's
    encoding lacks are printed as escapes.
    """
    _raise_interrupts()
    _open_closed_streams()
    _plain_warnings()
    with suppress(AttributeError):  # a stream of a test or a notebook
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        _end(INTERRUPTED, ": ".join(["interrupted", *map(str, error.args)]))
    except BrokenPipeError:
        _end(OUTPUT_GONE)
    except Exception as error:
        line = explanation(error)
        if line is None:
            raise
        _end(FAILED, f"error: {line}")


def explanation(error: BaseException) -> str | None:
    """The line that explains an error to users; None for a bug, which needs its traceback."""
    if isinstance(error, UserError):
        return str(error)
    if lacks_memory(error):
        return f"out of memory: {first_line(error)}"
    if isinstance(error, OSError) and (error.filename or error.errno in MACHINE_ERRORS):
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror}"
    if isinstance(error, AssertionError) or "Unable to initialize backend" in str(error):
        return _missing_device()
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most MAX_LINE_CHARS long; else its type."""
    lines = str(error).strip().splitlines()
    return lines[0][:MAX_LINE_CHARS] if lines else type(error).__name__


def shown(value: Any) -> str:
    """A value in an error: shortened, of any type."""
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number of thousands of digits"


def lacks_memory(error: BaseException) -> bool:
    """Whether the machine or a device has too little memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    texts = r"RESOURCE_EXHAUSTED|OUT_OF_MEMORY|ALLOC_FAILED|[Oo]ut of memory"
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and re.search(texts, str(error)) is not None
    )


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Turns a lack of memory of the machine or a device into a UserError with advice.

    Args:
        advice: which settings need less memory.
    """
    try:
        yield
    except Exception as error:
        if not lacks_memory(error):
            raise
        raise UserError(f"out of memory: {advice} ({first_line(error)})") from error


def is_command(argv: Sequence[str]) -> bool:
    """Whether this process is one of this project's commands, which import the package first."""
    scripts = [Path(__file__).resolve().parents[1] / name for name in ("train.py", "sample.py")]
    return argv[:1] == ["-m"] or any(Path(name).resolve() in scripts for name in argv[:1])


def quiet_interrupts() -> None:
    """Makes Ctrl-C end the process with one line until a command begins: during imports.

    It raises nothing: Python ignores what callbacks of its garbage collector raise, of which JAX
    has one, and C++ extensions abort.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as by nohup
        signal.signal(signal.SIGINT, _end_at_once)


def _end_at_once(*_: object) -> None:
    with suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _raise_interrupts() -> None:
    """Makes Ctrl-C raise KeyboardInterrupt, once more if a callback ignored it."""
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    before = sys.unraisablehook

    def hook(ignored: "sys.UnraisableHookArgs") -> None:
        if not issubclass(ignored.exc_type, KeyboardInterrupt):
            before(ignored)
            return
        again = threading.Timer(REDELIVERED_AFTER_S, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook


def _end(status: int, line: str = "") -> NoReturn:
    """Prints the line, and raises SystemExit."""
    with suppress(OSError):
        if line:  # one write: other threads cannot split the line
            sys.stderr.write(f"{line}\n")
    try:
        sys.stdout.flush()
    except OSError:  # Python would flush again at exit, and print a page
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(status) from None


def _open_closed_streams() -> None:
    """Opens the null device as what services close of stdin, stdout and stderr.

    Otherwise, Python has None there, and the next file that is opened gets the C library's output.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+" if number else "r"))  # noqa: SIM115


def _plain_warnings() -> None:
    """Prints warnings as they are: orbax's import puts a logger's name before each."""
    logging.basicConfig()
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:  # none of a test or a notebook
            handler.setFormatter(None)


def _missing_device() -> str | None:
    """Why JAX has no device; None if it has one."""
    import jax  # here: `prepare` needs none

    try:
        jax.devices()
    except Exception as error:  # an AssertionError without a word, if it knows the platform
        wanted = os.environ.get("JAX_PLATFORMS")
        if not wanted:
            return f"JAX finds no device: {first_line(error)}"
        return (
            f"JAX_PLATFORMS={wanted}: JAX finds no such device: unset it, or install JAX for that "
            "device (docs/running-on-gpus.md)"
        )
    return None


def system_cause(error: Exception) -> str:
    """The cause in one line, from orbax's many: the system's error message if it has one."""
    text = str(error)
    system = re.search(r"([^:\"]+: [^:\"]+) \[os_error_code", text)
    if system is not None:
        return system[1].strip()
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO):
        if os.strerror(number) in text:
            return os.strerror(number)
    return next(iter(text.strip().splitlines()), type(error).__name__)[:300]
