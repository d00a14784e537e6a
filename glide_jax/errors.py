"""User errors and Ctrl-C: one line on stderr and exit status 2 or 130, no traceback."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 + SIGINT."""


class UserError(Exception):
    """Invalid user input. The message names the input and the fix."""


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns a `UserError` into one line on stderr and exit status 2, and Ctrl-C into status 130.

    Characters that the terminal's encoding lacks are printed as escapes.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")  # one write: other threads cannot split the line
        raise SystemExit(2) from None
    except KeyboardInterrupt as error:
        sys.stderr.write(": ".join(["interrupted", *map(str, error.args)]) + "\n")
        raise SystemExit(INTERRUPTED) from None
