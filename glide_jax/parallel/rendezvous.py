"""The start of a multi-process run: every process connects to process 0, the lead.

This stays beside JAX's coordination service because that aborts every process, with a page of text
and without naming anyone, when a process is missing or two have the same number. The lead listens
at --coordinator, checks who connects, and then leaves the port to JAX.
"""

import contextlib
import json
import socket
import threading
import time
from typing import Any

from glide_jax.errors import UserError

HEARTBEAT_TIMEOUT_S = 30
"""Default time without a heartbeat after which a process counts as gone."""

HELLO_TIMEOUT_S = 10.0
"""Time for a new connection to say which process it is from."""


class Link:
    """A connection to another process that carries JSON objects, one a line."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("r", encoding="utf-8")
        self._sending = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message; a lost connection is left to the receiving side to report."""
        with self._sending, contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout_s: float | int) -> dict[str, Any] | None:
        """Returns the next message; None for a closed or silent connection, or other data."""
        try:  # the last line of a killed process may be cut short: a ValueError
            self._connection.settimeout(timeout_s)
            message = json.loads(self._lines.readline())
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        """Closes the connection, at both ends."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # also ends a `receive` of another thread
        self._connection.close()


def parse_address(coordinator: str) -> tuple[str, int]:
    """Host and port of HOST:PORT. Raises UserError for anything else."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator {coordinator} must be HOST:PORT, such as 10.0.0.1:1234")
    return host.strip("[]"), int(port)


def listen(address: str) -> socket.socket:
    """The lead's listening socket for `rendezvous`. Raises UserError."""
    try:
        return socket.create_server(parse_address(address), backlog=1024)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at {address}: {error.strerror}; give a --coordinator "
            "whose host is this machine and whose port is free"
        ) from None


def rendezvous(
    listener: socket.socket | None,
    address: str,
    index: int,
    count: int,
    timeout_s: int,
    heartbeat_timeout_s: int = HEARTBEAT_TIMEOUT_S,
) -> dict[int, Link]:
    """Connects the lead and the other processes.

    Args:
        listener: from `listen`, closed at the end; None for all processes but the lead.
        address: HOST:PORT of the listener.
        index: number of this process.
        count: number of processes.
        timeout_s: longest wait for the other processes.
        heartbeat_timeout_s: of the `ProcessGroup`; the same for all processes.

    Returns:
        The links of `ProcessGroup`.

    Raises:
        UserError: a process is missing, has the number of another one, or other flags.
    """
    deadline = time.monotonic() + timeout_s
    flags = {"--processes": count, "--heartbeat-timeout-s": heartbeat_timeout_s}
    if listener is None:
        return {0: _join(address, {"process": index, **flags}, deadline)}
    links: dict[int, Link] = {}
    try:
        with listener:
            _accept_all(listener, flags, links, timeout_s, deadline)
    except UserError as error:
        for link in links.values():
            link.send({"refusal": str(error)})
        raise
    except BaseException:  # Ctrl-C too: without an answer, the others end
        for link in links.values():
            link.close()
        raise
    for link in links.values():
        link.send({"refusal": ""})
    return links


def _accept_all(
    listener: socket.socket,
    flags: dict[str, int],
    links: dict[int, Link],
    timeout_s: int,
    deadline: float,
) -> None:
    """Fills `links` with all other processes; a refused one has the key -1."""
    count = flags["--processes"]
    while len(links) < count - 1:
        listener.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            link = Link(listener.accept()[0])
        except TimeoutError:
            missing = ", ".join(str(i) for i in range(1, count) if i not in links)
            raise UserError(
                f"process {missing} of {count} did not connect within {timeout_s} s"
            ) from None
        hello = link.receive(HELLO_TIMEOUT_S) or {}
        if hello.keys() != {"process", *flags}:
            link.close()  # another program
            continue
        process = hello["process"]
        duplicate = process in links or process == 0
        different = [flag for flag in flags if hello[flag] != flags[flag]]
        links[-1 if duplicate or different else process] = link
        for flag in different:
            raise UserError(
                f"process {process} was started with {flag} {hello[flag]}, process 0 with "
                f"{flags[flag]}"
            )
        if duplicate:
            raise UserError(f"two processes were started with --process {process}")


def _join(address: str, hello: dict[str, int], deadline: float) -> Link:
    """Connects to the lead as soon as it listens, and waits for its answer."""
    while True:
        try:
            connection = socket.create_connection(
                parse_address(address), timeout=max(0.1, deadline - time.monotonic())
            )
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"cannot reach process 0 at {address}: {error}; check that it is running and "
                    "that this is its address"
                ) from None
            time.sleep(0.2)
    link = Link(connection)
    link.send(hello)
    # The lead may have started later, and waits as long for the others.
    answer = link.receive(max(0.0, deadline - time.monotonic()) + HELLO_TIMEOUT_S) or {}
    if "refusal" not in answer:
        raise UserError(
            f"{address} did not answer as process 0 of a run does: check --coordinator, and that "
            "process 0 is still running"
        )
    if answer["refusal"]:
        raise UserError(answer["refusal"])
    return link
