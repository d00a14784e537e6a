"""Processes of one run, as threads of the test or as programs."""

import json
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

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


def hello(**changes):
    """The first message of process 1 of 2."""
    fields = {"process": 1, "--processes": 2, "--heartbeat-timeout-s": 30} | changes
    return json.dumps(fields).encode() + b"\n"


STRANGERS = {
    "silent": b"",
    "HTTP": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + random.Random(0).randbytes(193) + b"\n",
    "random": random.Random(1).randbytes(5000) + b"\n",
    "huge": b"x" * 2**20 + b"\n",
    "list": b"[1, 2]\n",
    "deep": b"[" * 60_000 + b"\n",
    "other fields": b'{"process": 1}\n',
    "no number": hello(process=[1]),
    "boolean": hello(process=True),
    "fraction": hello(process=1.0),
    "index of the lead": hello(process=0),
    "negative index": hello(process=-1),
    "index too large": hello(process=2),
    "many digits": hello().replace(b"1", b"1" * 5000),
}
"""What other programs send."""


@contextmanager
def strangers(port):
    """Other programs that connect to a port of this machine all the time; yields how often."""
    count, ended, kept = [0], threading.Event(), []

    def connect():
        while not ended.wait(0.3):
            for sent in STRANGERS.values():
                with suppress(OSError):  # nobody listens, or reads
                    kept.append(socket.create_connection(("127.0.0.1", port), timeout=0.2))
                    count[0] += 1
                    kept[-1].sendall(sent)
            for other in kept[:-50]:
                other.close()
            del kept[:-50]

    connecting = threading.Thread(target=connect)
    connecting.start()
    try:
        yield count
    finally:
        ended.set()
        connecting.join()
        for other in kept:
            other.close()


def finish_all(started, status=0, limit_s=300):
    """The stdout and stderr of each process, all of which must end with this status."""
    deadline = time.monotonic() + limit_s
    outputs = [process.communicate(timeout=deadline - time.monotonic()) for process in started]
    for process, (_, errors) in zip(started, outputs, strict=True):
        assert process.returncode == status, errors[-3000:]
    return outputs
