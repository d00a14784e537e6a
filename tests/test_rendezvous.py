import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import pytest
from helpers.processes import STRANGERS, hello, meet

from glide_jax import UserError
from glide_jax.parallel import rendezvous as module
from glide_jax.parallel.link import Link
from glide_jax.parallel.rendezvous import listen, parse_address, rendezvous


def test_processes_meet_in_any_order():
    assert [sorted(links) for links in meet((2, 3), (0, 3), (1, 3))] == [[0], [1, 2], [0]]


def test_a_missing_duplicate_or_differently_started_process_is_named():
    assert meet((0, 3), (1, 3), limit_s=1) == ["process 2 of 3 did not connect within 1 s"] * 2
    twice = meet((0, 3), (1, 3), (1, 3))
    assert twice == ["two processes were started with --process 1"] * 3
    counts = meet((0, 2), (1, 3))
    assert counts == ["process 1 was started with --processes 3, process 0 with 2"] * 2
    timeouts = meet((0, 2, 30), (1, 2, 5))
    line = "process 1 was started with --heartbeat-timeout-s 5, process 0 with 30"
    assert timeouts == [line] * 2
    (alone,) = meet((1, 2), limit_s=1)
    assert "cannot reach process 0 at 127.0.0.1:" in alone


def test_a_port_in_use_and_a_coordinator_that_is_another_program_are_named():
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(UserError, match=f"cannot listen at {address}: Address already"):
            listen(address)
        with ThreadPoolExecutor(1) as threads:
            joining = threads.submit(rendezvous, None, address, 1, 2, 20)
            other.accept()[0].close()
            with pytest.raises(UserError, match=f"{address} did not answer as process 0 of a run"):
                joining.result()


@contextmanager
def lead(timeout_s=20):
    """A lead that waits for process 1, a function that starts that, and the lead's address."""
    listener = listen("127.0.0.1:0")
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(rendezvous, listener, address, 0, 2, timeout_s)
        start = partial(threads.submit, rendezvous, None, address, 1, 2, timeout_s)
        yield waiting, start, listener.getsockname()


@pytest.mark.parametrize("closes", [True, False])
@pytest.mark.parametrize("sent", STRANGERS.values(), ids=STRANGERS)
def test_other_programs_neither_end_nor_delay_the_start(sent, closes):
    with lead() as (waiting, start, address), socket.create_connection(address) as other:
        with suppress(OSError):  # closed by the lead before it had read all
            other.sendall(sent)
            if closes:
                other.shutdown(socket.SHUT_WR)
        assert (list(start().result(5)), list(waiting.result(5))) == ([0], [1])


def test_a_byte_a_moment_and_many_open_connections_delay_nobody(monkeypatch):
    monkeypatch.setattr(module, "MAX_WAITING", 8)
    with lead() as (waiting, start, address), ExitStack() as stack:
        others = [stack.enter_context(socket.create_connection(address)) for _ in range(20)]
        others[-1].sendall(hello()[:-1])  # never complete
        ended = threading.Event()

        def drip():
            with socket.create_connection(address) as other:
                while not ended.wait(0.02):
                    other.sendall(b"x")

        dripping = threading.Thread(target=drip)
        dripping.start()
        joined = start()
        assert (list(joined.result(5)), list(waiting.result(5))) == ([0], [1])
        ended.set()
        dripping.join()


def test_no_connection_extends_the_wait_for_a_process(monkeypatch):
    monkeypatch.setattr(module, "HELLO_TIMEOUT_S", 0.1)
    with lead(timeout_s=1) as (waiting, _, address), ExitStack() as stack:
        others = [stack.enter_context(socket.create_connection(address)) for _ in range(3)]
        assert [other.recv(1) for other in others] == [b""] * 3  # closed after their time
        error = waiting.exception(3)
    assert str(error) == "process 1 of 2 did not connect within 1 s"


def test_a_process_that_ended_while_it_waited_can_be_started_again():
    listener = listen("127.0.0.1:0")
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    started = hello(**{"--processes": 3})
    with ThreadPoolExecutor(3) as threads:
        waiting = threads.submit(rendezvous, listener, address, 0, 3, 20)
        for _ in range(2):
            with socket.create_connection(listener.getsockname()) as first:
                first.sendall(started)
                time.sleep(0.05)
        others = [threads.submit(rendezvous, None, address, i, 3, 20) for i in (1, 2)]
        assert sorted(waiting.result()) == [1, 2]
        assert [list(other.result()) for other in others] == [[0], [0]]


@pytest.mark.parametrize(
    "answer",
    [b"x" * 2**17, b'{"refusal": 1}\n', b'{"refusal": "\x1b[2J"}\n', b"[]\n", b"{}\n"],
)
def test_a_process_believes_no_other_program(answer):
    with socket.create_server(("127.0.0.1", 0)) as other, ThreadPoolExecutor(1) as threads:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        joining = threads.submit(rendezvous, None, address, 1, 2, 20)
        with other.accept()[0] as connection, pytest.raises(UserError, match="did not answer as"):
            connection.sendall(answer)
            joining.result(5)


def test_a_message_must_be_complete_in_time_and_may_be_large():
    near, far = socket.socketpair()
    link, other = Link(near), Link(far)
    large = {"value": "a" * 2**20}
    sending = threading.Thread(target=other.send, args=(large,))
    sending.start()
    assert link.receive(5) == large
    sending.join()
    far.sendall(b'{}\n{"a": 1}\n{"b')
    assert [link.receive(5), link.receive(5)] == [{}, {"a": 1}]
    began = time.monotonic()
    threading.Timer(0.2, far.sendall, (b"c",)).start()  # does not start the time again
    assert link.receive(0.3) is None
    assert 0.25 < time.monotonic() - began < 0.45
    link.close()
    other.close()


@pytest.mark.parametrize(
    "wrong", ["a", "a:", ":1", "[]:1", "a:0", "a:65536", "a:-1", "a:1_0", "a:\u00b2", "a..b:1"]
)
def test_an_address_is_a_host_and_a_port(wrong):
    with pytest.raises(UserError, match="must be HOST:PORT"):
        parse_address(wrong)


def test_the_lead_listens_at_the_given_address_only():
    assert parse_address("[::1]:12") == ("::1", 12)
    with listen("127.0.0.1:0") as listener:
        host, port = listener.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.2", port), timeout=1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_lead_that_ends_while_it_waits_accepts_nobody(error, monkeypatch):
    def interrupted(listener, flags, links, *times):
        links[1] = Link(listener.accept()[0])
        raise error

    monkeypatch.setattr("glide_jax.parallel.rendezvous._accept_all", interrupted)
    listener = listen("127.0.0.1:0")
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    with ThreadPoolExecutor(1) as threads:
        member = threads.submit(rendezvous, None, address, 1, 3, 20)
        with pytest.raises(error):
            rendezvous(listener, address, 0, 3, 20)
        with pytest.raises(UserError, match=r"did not answer .*that process 0 is still running"):
            member.result()
