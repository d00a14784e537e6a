"""User errors: one line on stderr and exit status 2, no traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Invalid user input. The message names the input and the fix."""


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns a `UserError` into one line on stderr and exit status 2."""
    try:
        yield
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")  # one write: other threads cannot split the line
        raise SystemExit(2) from None
