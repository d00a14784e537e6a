"""The start of a multi-process run: every process connects to process 0, the lead.

This stays beside JAX's coordination service because that aborts every process, with a page of text
and without naming anyone, when a process is missing or two have the same number. The lead listens
at --coordinator, checks who connects, and then leaves the port to JAX.
"""

import contextlib
import selectors
import socket
import time
from types import TracebackType
from typing import Any

from glide_jax.errors import UserError
from glide_jax.parallel.link import Link

HEARTBEAT_TIMEOUT_S = 30
"""Default time without a heartbeat after which a process counts as gone."""

HELLO_TIMEOUT_S = 10.0
"""Time for a new connection to say which process it is from."""

MAX_HELLO_BYTES = 2**16
"""Size of the messages before a connection is a link of the run."""

MAX_WAITING = 128
"""Connections that have not said which process they are from; the oldest gives way to a new one."""


def parse_address(coordinator: str, min_port: int = 1) -> tuple[str, int]:
    """Host and port of HOST:PORT. Raises UserError for anything else."""
    host, _, port = coordinator.rpartition(":")
    host = host.strip("[]")
    with contextlib.suppress(ValueError):
        number = int(port) if port.isascii() and port.isdigit() else -1
        if host.encode("idna") and min_port <= number < 2**16:
            return host, number
    raise UserError(f"--coordinator {coordinator} must be HOST:PORT, such as 10.0.0.1:1234")


def listen(address: str) -> socket.socket:
    """The lead's listening socket for `rendezvous`, at this address only. Raises UserError."""
    host, port = parse_address(address, min_port=0)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
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

    Connections of other programs are closed. None of them can end the run or make it wait.

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
    with _Reception(listener, flags, links) as reception:
        while len(links) < count - 1:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                missing = ", ".join(str(i) for i in range(1, count) if i not in links)
                raise UserError(
                    f"process {missing} of {count} did not connect within {timeout_s} s"
                )
            reception.serve(min(1.0, left_s))


class _Reception:
    """The connections to the lead, none of which it waits for.

    Args:
        listener: accepts them.
        flags: of the lead.
        links: gets those of the other processes, and loses the closed ones.
    """

    def __init__(
        self, listener: socket.socket, flags: dict[str, int], links: dict[int, Link]
    ) -> None:
        listener.setblocking(False)  # whoever connected may be gone
        self._listener, self._flags, self._links = listener, flags, links
        self._waiting: dict[Link, float] = {}  # until when each may say which process it is from
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)

    def __enter__(self) -> "_Reception":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._selector.close()
        for link in self._waiting:
            link.close()

    def serve(self, timeout_s: float) -> None:
        """Handles what arrives within the time, or some of it. Raises UserError."""
        for key, _ in self._selector.select(timeout_s):
            if isinstance(key.fileobj, Link):
                self._read(key.fileobj)
            else:
                self._accept()
        now = time.monotonic()
        for link in [link for link, until in self._waiting.items() if until < now]:
            self._drop(link)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError:  # too many open files
            if not self._waiting:
                raise
            self._drop(next(iter(self._waiting)))
            return
        link = Link(connection)
        self._selector.register(link, selectors.EVENT_READ)
        self._waiting[link] = time.monotonic() + HELLO_TIMEOUT_S
        if len(self._waiting) > MAX_WAITING:
            self._drop(next(iter(self._waiting)))

    def _drop(self, link: Link) -> None:
        self._selector.unregister(link)
        self._waiting.pop(link, None)
        for process in [process for process, other in self._links.items() if other is link]:
            del self._links[process]
        link.close()

    def _read(self, link: Link) -> None:
        if link not in self._waiting and link not in self._links.values():
            return  # dropped since the selector found it
        try:
            hello = link.arrived(MAX_HELLO_BYTES)
        except OSError:
            hello = {}
        if hello is None:
            return
        if link in self._waiting and self._is_hello(hello):
            del self._waiting[link]
            self._admit(link, hello)
        else:  # another program, or a process that has ended and may be started again
            self._drop(link)

    def _is_hello(self, message: dict[str, Any]) -> bool:
        """Whether a process of this package can have sent the message."""
        return (
            message.keys() == {"process", *self._flags}
            and all(type(value) is int for value in message.values())
            and 0 < message["process"] < message["--processes"]
        )

    def _admit(self, link: Link, hello: dict[str, int]) -> None:
        process = hello["process"]
        different = [flag for flag, value in self._flags.items() if hello[flag] != value]
        duplicate = process in self._links
        self._links[-1 if duplicate or different else process] = link
        for flag in different:
            raise UserError(
                f"process {process} was started with {flag} {hello[flag]}, process 0 with "
                f"{self._flags[flag]}"
            )
        if duplicate:
            raise UserError(f"two processes were started with --process {process}")


def _join(address: str, hello: dict[str, int], deadline: float) -> Link:
    """Connects to the lead as soon as it listens, and waits for its answer."""
    link = Link(_connection(address, deadline))
    link.send(hello)
    # The lead may have started later, and waits as long for the others.
    limit_s = max(0.0, deadline - time.monotonic()) + HELLO_TIMEOUT_S
    answer = link.receive(limit_s, MAX_HELLO_BYTES) or {}
    refusal = answer.get("refusal")
    if not isinstance(refusal, str) or not refusal.isprintable():
        raise UserError(
            f"{address} did not answer as process 0 of a run does: check --coordinator, and that "
            "process 0 is still running"
        )
    if refusal:
        raise UserError(refusal)
    return link


def _connection(address: str, deadline: float) -> socket.socket:
    """A connection to the lead, tried until the deadline. Raises UserError."""
    while True:
        try:
            connection = socket.create_connection(
                parse_address(address), timeout=max(0.1, deadline - time.monotonic())
            )
            if connection.getsockname() != connection.getpeername():
                return connection
            # On one machine, a connection may get the lead's free port for its own end as well.
            connection.close()
            time.sleep(0.2)
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"cannot reach process 0 at {address}: {error}; check that it is running and "
                    "that this is its address"
                ) from None
            time.sleep(0.2)
