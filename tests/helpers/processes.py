"""Processes of one run, as threads of the test or as programs."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from glide_jax import UserError
from glide_jax.parallel.process_group import ProcessGroup
from glide_jax.parallel.rendezvous import listen, rendezvous


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def meet(*processes, limit_s=20):
    """The links, or the error, of `rendezvous` for each (number, count, ...)."""
    address = f"127.0.0.1:{free_port()}"

    def call(process, count, *heartbeat_timeout_s):
        try:
            listener = listen(address) if process == 0 else None
            return rendezvous(listener, address, process, count, limit_s, *heartbeat_timeout_s)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(processes)) as threads:
        return list(threads.map(call, *zip(*processes, strict=True)))


@contextmanager
def connected(count, heartbeat_timeout_s=30):
    """The process groups of one run, all in this process: calls a function with each."""
    links = meet(*((process, count) for process in range(count)))
    groups = [
        ProcessGroup(index, count, links[index], heartbeat_timeout_s=heartbeat_timeout_s)
        for index in range(count)
    ]
    with ThreadPoolExecutor(count) as threads:
        yield lambda function, *args: list(threads.map(function, groups, *args))
        list(threads.map(ProcessGroup.shutdown, groups))
        for link in (link for by_peer in links for link in by_peer.values()):
            link.close()


def finish_all(started, status=0, limit_s=300):
    """The stdout and stderr of each process, all of which must end with this status."""
    deadline = time.monotonic() + limit_s
    outputs = [process.communicate(timeout=deadline - time.monotonic()) for process in started]
    for process, (_, errors) in zip(started, outputs, strict=True):
        assert process.returncode == status, errors[-3000:]
    return outputs
