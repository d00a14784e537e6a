"""Messages between the processes of a run, bounded in size and time."""

import contextlib
import json
import select
import socket
import threading
import time
from typing import Any

SEND_TIMEOUT_S = 10.0
"""Time for the network to take a message."""

MAX_MESSAGE_BYTES = 64 * 2**20
"""Size of a message by default: the lead sends the settings of all processes in one."""


class Link:
    """A connection to another process that carries JSON objects, one a line."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(SEND_TIMEOUT_S)
        self._connection = connection
        self._received = bytearray()
        self._sending = threading.Lock()

    def fileno(self) -> int:
        """File descriptor of the connection, for `selectors`."""
        return self._connection.fileno()

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message; a lost connection is left to the receiving side to report."""
        with self._sending:
            try:
                self._connection.sendall(json.dumps(message).encode() + b"\n")
            except TimeoutError:  # half a line, which the next one would continue
                self.close()
            except OSError:
                pass

    def receive(
        self, timeout_s: float | int, max_bytes: int = MAX_MESSAGE_BYTES
    ) -> dict[str, Any] | None:
        """Returns the next message; None for a closed connection, or other data.

        Args:
            timeout_s: time in which the message must be complete.
            max_bytes: its largest size.
        """
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        message = None
        try:
            poll.register(self._connection, select.POLLIN)
            while message is None:
                left_s = max(0.0, deadline - time.monotonic())
                if b"\n" not in self._received and not poll.poll(1000 * left_s):
                    return None
                message = self.arrived(max_bytes)
        except (OSError, ValueError):  # ValueError: closed by another thread
            return None
        return message

    def arrived(self, max_bytes: int) -> dict[str, Any] | None:
        """Returns the next message; None if it is not complete.

        Call it when `fileno` is ready to read: it reads once.

        Raises:
            OSError: the connection is closed, or carries other data.
        """
        if b"\n" not in self._received:
            data = self._connection.recv(65536)
            if not data:
                raise ConnectionError
            self._received += data
        end = self._received.find(b"\n")
        if (end if end >= 0 else len(self._received)) > max_bytes:
            raise ConnectionError
        if end < 0:
            return None
        line = self._received[:end]
        del self._received[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise ConnectionError from None
        if not isinstance(message, dict):
            raise ConnectionError
        return message

    def close(self) -> None:
        """Closes the connection, at both ends."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # also ends a `receive` of another thread
        self._connection.close()
