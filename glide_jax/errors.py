"""Bad input is the user's business: one clear line, exit status 2, no traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something the user gave cannot be used; the message names it and says what to do."""


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Ends the program with status 2 and one line on stderr when a `UserError` reaches it."""
    try:
        yield
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")  # in one piece, whatever other threads write
        raise SystemExit(2) from None
