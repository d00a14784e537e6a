"""The processes of a run know of each other: a connection from each to the lead, kept open.

When a process dies, the others wait in a collective for its part, and JAX ends them only after
heartbeats have stayed out for long. The system closes a process's connections however it ends: so
all know at once, say who is gone, and end too. Where nobody is left to close them, as with a
network that is cut, no sign of life comes any more. The same connections carry the few things that
processes tell each other outside of compiled programs, as lines of JSON.
"""

import contextlib
import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from glide_jax.errors import UserError

GONE = 3
"""Exit status of a process that ends because another one died."""

GRACE_S = 5.0
"""How long a process that hears of another's failure may take to meet the same one by itself."""

HEARTBEAT_TIMEOUT_S = 30
"""A process of which nothing is heard for so long counts as gone, unless told otherwise."""

ANSWER_S = 2.0
"""How long a process that ends may take to find out from where the run would resume."""

SIGNS = 6
"""Signs of life that a process gives in this time."""


class ProcessGroup:
    """The processes of a run; without connections, this one is alone.

    Args:
        index: of this process; 0 is the lead.
        count: of the run's processes.
        connections: to whom this process has one: the lead to all others, the others to the lead.
        last_step: says from which step the run would resume, None for its beginning.
        heartbeat_timeout_s: as HEARTBEAT_TIMEOUT_S, the same for all.
    """

    def __init__(
        self,
        index: int = 0,
        count: int = 1,
        connections: dict[int, socket.socket] | None = None,
        last_step: Callable[[], int | None] = lambda: None,
        heartbeat_timeout_s: float | int = HEARTBEAT_TIMEOUT_S,
    ) -> None:
        self.index = index
        self.count = count
        self._connections = connections or {}
        self._last_step = last_step
        self._told: dict[int, queue.Queue[Any]] = {
            peer: queue.Queue() for peer in self._connections
        }
        self._sending = threading.Lock()
        self._ending = threading.Lock()
        self._last_word = threading.Lock()
        self._over = False
        self._listeners = [
            threading.Thread(target=self._listen, args=item, daemon=True)
            for item in self._connections.items()
        ]
        for connection in self._connections.values():
            connection.settimeout(heartbeat_timeout_s)
        for listener in self._listeners:
            listener.start()
        if self._connections:
            # A thread of its own: a process that compiles for minutes is alive.
            period_s = heartbeat_timeout_s / SIGNS
            threading.Thread(target=self._give_signs, args=(period_s,), daemon=True).start()

    @property
    def lead(self) -> bool:
        """Whether this process is the one that writes and speaks for all."""
        return self.index == 0

    def gather(self, value: Any) -> list[Any]:
        """What every process gave, by its number, once all have come here.

        Args:
            value: anything that JSON holds.
        """
        value = json.loads(json.dumps(value))  # as the others get it
        if not self.lead:
            self._tell({"value": value})
            return self._told[0].get()
        values = [value, *(self._told[peer].get() for peer in range(1, self.count))]
        self._tell({"value": values})
        return values

    def barrier(self) -> None:
        """Waits until every process has come here."""
        self.gather(None)

    def shutdown(self) -> None:
        """The end of a run that went well: from now on, all may go."""
        self.barrier()
        self._over = True
        self.barrier()  # nobody goes before all know that going is no death

    def fail(self, why: str, status: int, text: str) -> NoReturn:
        """Ends this process, and the others after it.

        Args:
            why: the line that the others end with.
            status: exit status of all.
            text: what this one prints.
        """
        self._take_last_word()
        self._over = True
        sys.stderr.write(text)
        self._tell({"failed": self.index, "why": why, "status": status})
        if self.lead:  # JAX ends the others with noise when the lead goes first
            self._wait_for_others(2 * GRACE_S)
        _exit(status)

    def _tell(self, message: dict[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        for connection in self._connections.values():
            with self._sending, contextlib.suppress(OSError):  # of the dead the listeners know
                connection.sendall(line)

    def _give_signs(self, period_s: float) -> None:
        while True:
            self._tell({})
            time.sleep(period_s)

    def _listen(self, peer: int, connection: socket.socket) -> None:
        # ValueError: the last line of a process that is killed may be cut short.
        with contextlib.suppress(OSError, ValueError), connection.makefile("r") as lines:
            for line in lines:
                message = json.loads(line)
                if "value" in message:
                    self._told[peer].put(message["value"])
                elif message and not self._over:
                    self._end(message)
        if not self._over:
            self._end({"gone": peer})
        self._told[peer].put(None)  # nobody waits for it any more

    def _end(self, message: dict[str, Any]) -> None:
        """Ends this process for what happened to another."""
        if not self._ending.acquire(blocking=False):
            return  # another thread is at it
        if self.lead:
            self._tell(message)
        if "gone" in message:
            self._take_last_word()
            _say(f"{self._name(message['gone'])} is gone; start all again: {self._resumes()}")
            if self.lead:
                self._wait_for_others(GRACE_S)
            _exit(GONE)
        if self.lead:
            self._wait_for_others(2 * GRACE_S)
        else:
            time.sleep(GRACE_S)
        if not self._over:  # else this process fails by itself, and says why
            self._take_last_word()
            _say(f"{self._name(message['failed'])}: {message['why']}")
            _exit(message["status"])

    def _take_last_word(self) -> None:
        """One thread ends the process; one that comes later waits for that end."""
        self._last_word.acquire()

    def _wait_for_others(self, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        for listener in self._listeners:
            if listener is not threading.current_thread():
                listener.join(max(0.0, deadline - time.monotonic()))

    def _name(self, peer: int) -> str:
        return f"process {peer} of {self.count}"

    def _resumes(self) -> str:
        answer: queue.Queue[int | None] = queue.Queue()

        def ask() -> None:
            with contextlib.suppress(UserError):
                answer.put(self._last_step())

        # A bucket that cannot be reached is tried again and again.
        threading.Thread(target=ask, daemon=True).start()
        try:
            step = answer.get(timeout=ANSWER_S)
        except queue.Empty:
            return "the run resumes from its last checkpoint"
        return f"the run resumes from step {step}" if step else "the run begins anew"


def _say(line: str) -> None:
    sys.stderr.write(f"error: {line}\n")  # in one piece, whatever other threads write


def _exit(status: int) -> NoReturn:
    """Without cleaning up, which would wait for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
