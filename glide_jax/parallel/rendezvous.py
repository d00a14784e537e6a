"""The first thing that a run's processes do: the lead hears of all others, or says who is missing.

JAX aborts with a page of text where a process cannot be reached, or comes twice. So processes meet
here first, at the address that they were given, and the lead hands on where JAX is to meet.
"""

import contextlib
import json
import socket
import time
from collections.abc import Mapping
from typing import Any

from glide_jax.errors import UserError
from glide_jax.parallel.process_group import GRACE_S, HEARTBEAT_TIMEOUT_S


def parse_address(coordinator: str) -> tuple[str, int]:
    """Host and port of HOST:PORT. Raises UserError if it is none."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator {coordinator} must be HOST:PORT, as 10.0.0.1:1234")
    return host.strip("[]"), int(port)


def own_address() -> str:
    """Of this machine, as others see it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; the system picks what to send from
        except OSError:  # no way out of this machine
            return socket.gethostname()
        return probe.getsockname()[0]


def listen(host: str, port: int) -> socket.socket:
    """The lead's end, for `rendezvous`; port 0 takes a free one. Raises UserError."""
    try:
        return socket.create_server((host, port), backlog=1024)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at {host}:{port}: {error.strerror}; give a --coordinator "
            "whose host is this machine and whose port is free"
        ) from None


def rendezvous(
    listener: socket.socket | None,
    address: str,
    index: int,
    count: int,
    limit_s: int,
    heartbeat_timeout_s: int = HEARTBEAT_TIMEOUT_S,
) -> tuple[dict[int, socket.socket], int]:
    """Connects the lead and the others.

    Args:
        listener: from `listen`; None for the others.
        address: where that is.
        index: of this process.
        count: of processes.
        limit_s: how long they wait for each other.
        heartbeat_timeout_s: what `ProcessGroup` takes, which has to be the same for all.

    Returns:
        The connections that `ProcessGroup` takes, and a port of the lead's machine for JAX.

    Raises:
        UserError: a process is missing, comes twice, or was started otherwise.
    """
    deadline = time.monotonic() + limit_s
    same = {"--processes": count, "--heartbeat-timeout-s": heartbeat_timeout_s}
    if listener is None:
        connection, answer = _report(address, {"process": index, **same}, deadline)
        connections = {0: connection}
        if "refused" in answer:
            raise UserError(answer["refused"])
    else:
        with listener:
            connections, refusal = _gather_all(listener, same, deadline, limit_s)
        with socket.create_server(("", 0)) as free:
            answer = {"refused": refusal} if refusal else {"jax_port": free.getsockname()[1]}
        for connection in connections.values():
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(answer).encode() + b"\n")
        if refusal:
            raise UserError(refusal)
    return connections, answer["jax_port"]


def _gather_all(
    listener: socket.socket, same: Mapping[str, int], deadline: float, limit_s: int
) -> tuple[dict[int, socket.socket], str]:
    """A connection to every other process; and what is wrong with them, or nothing."""
    count = same["--processes"]
    found: dict[int, socket.socket] = {}
    while len(found) < count - 1:
        listener.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            missing = ", ".join(str(i) for i in range(1, count) if i not in found)
            return found, f"process {missing} of {count} did not come within {limit_s} s"
        try:
            connection.settimeout(10)
            hello = _line(connection)
            process, theirs = hello["process"], {flag: hello[flag] for flag in same}
        except (OSError, ValueError, LookupError, TypeError):
            connection.close()  # somebody else
            continue
        for flag, ours in same.items():
            if theirs[flag] != ours:
                found[-1] = connection
                return found, (
                    f"process {process} was started with {flag} {theirs[flag]}, process 0 with "
                    f"{ours}"
                )
        if process in found or process == 0:
            found[-1] = connection
            return found, f"two processes were started with --process {process}"
        found[process] = connection
    return found, ""


def _report(
    address: str, hello: dict[str, int], deadline: float
) -> tuple[socket.socket, dict[str, Any]]:
    """Says to the lead who this is, as soon as it listens, and waits for its answer."""
    while True:
        try:
            connection = socket.create_connection(
                parse_address(address), timeout=max(0.1, deadline - time.monotonic())
            )
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"cannot reach process 0 at {address}: {error}; is it running, and is that "
                    "its address?"
                ) from None
            time.sleep(0.2)
    try:
        connection.sendall(json.dumps(hello).encode() + b"\n")
        connection.settimeout(max(0.1, deadline - time.monotonic()) + GRACE_S)
        return connection, _line(connection)
    except (OSError, ValueError) as error:
        raise UserError(
            f"process 0 at {address} did not answer as glide_jax does: {error}"
        ) from None


def _line(connection: socket.socket) -> dict[str, Any]:
    """One line of JSON, and not a byte more."""
    text = b""
    while not text.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            raise ValueError("the connection was closed")
        text += byte
    return json.loads(text)
