import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.processes import meet

from glide_jax import UserError
from glide_jax.parallel.rendezvous import Link, listen, rendezvous


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


@pytest.mark.parametrize("hello", [b"GET / HTTP/1.1\n", b"[1, 2]\n", b'{"process": 1}\n', b""])
def test_the_lead_ignores_connections_of_other_programs(hello):
    listener = listen("127.0.0.1:0")
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    other = socket.create_connection(listener.getsockname())
    with other, ThreadPoolExecutor(2) as threads:
        other.sendall(hello)
        other.shutdown(socket.SHUT_WR)
        lead = threads.submit(rendezvous, listener, address, 0, 2, 20)
        member = threads.submit(rendezvous, None, address, 1, 2, 20)
        assert (list(lead.result()), list(member.result())) == ([1], [0])


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
