import socket
import subprocess
import sys
import time

import pytest
from helpers.processes import connected, free_port

from glide_jax.errors import UserError
from glide_jax.parallel.process_group import GONE, ProcessGroup


def test_gather_returns_every_processs_value():
    with connected(3) as call:
        gathered = call(lambda group: group.gather({"number": (group.index, "ö")}))
        assert gathered == [[{"number": [i, "ö"]} for i in range(3)]] * 3
    assert ProcessGroup().gather((1, 2)) == [[1, 2]]


def test_heartbeats_keep_an_idle_process_alive():
    with connected(2, heartbeat_timeout_s=0.5) as call:
        time.sleep(1.5)
        assert call(lambda group: group.gather(group.index)) == [[0, 1]] * 2


@pytest.mark.parametrize(
    ("error", "status", "line", "text"),
    [
        (UserError(), 2, "", "error: \n"),
        (UserError("no disk\nat all"), 2, "no disk", "error: no disk\nat all\n"),
        (MemoryError("9 B"), 2, "out of memory: 9 B", "error: out of memory: 9 B\n"),
        (KeyboardInterrupt(), GONE, "interrupted", "interrupted\n"),
    ],
)
def test_the_others_end_with_the_first_line_of_an_error(error, status, line, text, monkeypatch):
    def end(self, *given):
        raise SystemExit(given)

    monkeypatch.setattr(ProcessGroup, "_end", end)
    with pytest.raises(SystemExit) as ended:
        ProcessGroup(1, 3).fail(error)
    assert ended.value.args[0] == (f"process 1 of 3: {line}", status, text)


def test_a_failed_look_up_of_the_last_step_hides_no_death():
    def last_step():
        raise OSError("stale file handle")

    group = ProcessGroup(last_step=last_step)
    assert group._resumption() == "the run resumes from its last checkpoint"


MEMBER = """
import sys, time
from glide_jax.errors import UserError
from glide_jax.parallel.process_group import ProcessGroup
from glide_jax.parallel.rendezvous import listen, rendezvous
index, port, fails, lookup_s = map(int, sys.argv[1:])
def last_step():
    time.sleep(lookup_s)
    return 40
address = f"127.0.0.1:{port}"
links = rendezvous(listen(address) if index == 0 else None, address, index, 3, 20)
group = ProcessGroup(index, 3, links, last_step)
group.barrier()
print("here", flush=True)
group.barrier()
if index == fails:
    group.fail(UserError("the disk is full"))
time.sleep(60)
"""


def members(fails, lookup_s=0):
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER, *map(str, (index, port, fails, lookup_s))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(3)
    ]
    for process in started:
        assert process.stdout.readline() == "here\n"
    return started


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_is_killed_the_others_name_it_and_end(victim):
    started = members(fails=-1)
    started[victim].kill()
    line = f"process {victim} of 3 is gone; start all again: the run resumes from step 40"
    for index, process in enumerate(started):
        _, errors = process.communicate(timeout=20)
        if index != victim:
            assert (process.returncode, errors) == (GONE, f"error: {line}\n")


@pytest.mark.parametrize(
    ("peer", "message", "expected"),
    [
        (0, {}, True),
        (0, {"value": [1, None, 2]}, True),
        (0, {"value": [1, 2]}, False),
        (0, {"value": 1}, False),
        (1, {"value": 1}, True),
        (1, {"value": 1, "line": "a"}, False),
        (0, {"line": "no disk", "status": 2}, True),
        (0, {"line": "no disk", "status": 0}, False),
        (0, {"line": "no disk", "status": "2"}, False),
        (0, {"line": ["no disk"], "status": 2}, False),
        (0, {"line": "no disk"}, False),
        (0, {"refusal": ""}, False),
    ],
)
def test_other_messages_than_those_of_a_run_are_not_believed(peer, message, expected):
    assert ProcessGroup(1, 3)._expects(peer, message) == expected


LISTENING = """
import ctypes, socket, sys, threading, time
from glide_jax.parallel.link import Link
from glide_jax.parallel.process_group import ProcessGroup
def last_step():
    threading.Thread(target=ctypes.CDLL(None).abort).start()  # as JAX does when the lead is dead
    time.sleep(0.2)
    return 40
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    ProcessGroup(1, 2, {0: Link(connection)}, last_step)
    time.sleep(60)
"""


@pytest.mark.parametrize("rest", [b'{"val', b'{"value": "\xc3'])
def test_a_lead_killed_in_the_middle_of_a_line_is_gone(rest):
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-c", LISTENING, str(server.getsockname()[1])]
        listening = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"{}\n" + rest)
            connection.shutdown(socket.SHUT_WR)
            _, errors = listening.communicate(timeout=20)
    line = "process 0 of 2 is gone; start all again: the run resumes from step 40"
    assert (listening.returncode, errors) == (GONE, f"error: {line}\n")


@pytest.mark.slow
def test_no_process_waits_for_a_bucket_that_does_not_answer():
    started = members(fails=-1, lookup_s=60)
    started[1].kill()
    began = time.monotonic()
    for process in (started[0], started[2]):
        _, errors = process.communicate(timeout=20)
        line = "process 1 of 3 is gone; start all again: the run resumes from its last checkpoint"
        assert (process.returncode, errors) == (GONE, f"error: {line}\n")
    assert time.monotonic() - began < 10
    started[1].communicate()


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 2])
def test_when_one_process_fails_the_others_end_with_its_line(failing):
    for index, process in enumerate(members(failing)):
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 2
        name = "" if index == failing else f"process {failing} of 3: "
        assert errors == f"error: {name}the disk is full\n"
