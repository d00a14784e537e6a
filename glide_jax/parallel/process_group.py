"""The processes of a run, each with an open connection to process 0, the lead.

Its parts, and why JAX's coordination service does not replace them:

- The death of a process. The operating system closes its connections, so all others end at once,
  with one line and exit status 3. JAX waits for missing heartbeats, and aborts the others with a
  page of text and status 134; at once, if the lead is dead. `jax_enable_recoverability` prevents
  the former only.
- Heartbeats. Nobody closes the connections of a stopped process, or of a machine without network or
  power. TCP keepalives would not notice the stopped one.
- The failure of one process ends all, with its message; JAX would treat it as a death.
- `gather` of small values. `multihost_utils` has arrays of one fixed shape, which it exchanges
  in a compiled program.
"""

import ctypes
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from glide_jax.errors import FAILED, explanation
from glide_jax.parallel.link import Link
from glide_jax.parallel.rendezvous import HEARTBEAT_TIMEOUT_S

GONE = 3
"""Exit status after the death of another process."""

GRACE_S = 5.0
"""Time in which the death behind a failed collective, or the end of the others, shows."""

LOOKUP_S = 2.0
"""Time to find the step from which the run would resume."""

HEARTBEATS = 6
"""Heartbeats a process sends within the timeout."""


class ProcessGroup:
    """The processes of a run; without links, a single process.

    Args:
        index: number of this process; 0 is the lead.
        count: number of processes.
        links: by process number: the lead's to all others, any other's to the lead.
        last_step: returns the step from which the run would resume, None for its beginning.
        heartbeat_timeout_s: time without a heartbeat after which a process counts as gone.
    """

    def __init__(
        self,
        index: int = 0,
        count: int = 1,
        links: dict[int, Link] | None = None,
        last_step: Callable[[], int | None] = lambda: None,
        heartbeat_timeout_s: float | int = HEARTBEAT_TIMEOUT_S,
    ) -> None:
        self.index = index
        self.count = count
        self._links = links or {}
        self._last_step = last_step
        self._values: dict[int, queue.Queue[Any]] = {peer: queue.Queue() for peer in self._links}
        self._ending = threading.Lock()
        self._over = False
        self._listeners = [
            threading.Thread(target=self._listen, args=(peer, heartbeat_timeout_s), daemon=True)
            for peer in self._links
        ]
        for listener in self._listeners:
            listener.start()
        if self._links:
            # A thread of its own: a process that compiles for minutes is alive.
            period_s = heartbeat_timeout_s / HEARTBEATS
            threading.Thread(target=self._send_heartbeats, args=(period_s,), daemon=True).start()

    @property
    def lead(self) -> bool:
        """Whether this process writes and prints for all."""
        return self.index == 0

    def gather(self, value: Any) -> list[Any]:
        """Returns every process's value, by process number. All processes must call it.

        Args:
            value: anything that JSON can represent.
        """
        value = json.loads(json.dumps(value))  # as the others receive it
        if not self.lead:
            self._send({"value": value})
            return self._values[0].get()
        values = [value, *(self._values[peer].get() for peer in range(1, self.count))]
        self._send({"value": values})
        return values

    def barrier(self) -> None:
        """Waits until every process has called it."""
        self.gather(None)

    def shutdown(self) -> None:
        """Ends a successful run: from now on, closed connections are expected."""
        self.barrier()
        self._over = True
        self.barrier()  # nobody leaves before all others expect it

    def fail(self, error: BaseException) -> NoReturn:
        """Ends this process and all others: with status 2 if users can mend it, else `GONE`.

        Args:
            error: the exception being handled; the others end with its first line.
        """
        explained = explanation(error)
        if explained is not None:
            status, why, text = FAILED, explained, f"error: {explained}\n"
        elif isinstance(error, KeyboardInterrupt):
            status, why, text = GONE, "interrupted", "interrupted\n"
        else:
            status, why = GONE, f"{type(error).__name__}: {error}"
            text = traceback.format_exc()
            time.sleep(GRACE_S)  # collectives fail when a process dies: a listener reports that
        line = why.partition("\n")[0]
        self._end(f"{self._name(self.index)}: {line}", status, text)

    def _send(self, message: dict[str, Any]) -> None:
        for link in self._links.values():
            link.send(message)

    def _send_heartbeats(self, period_s: float) -> None:
        while True:
            self._send({})
            time.sleep(period_s)

    def _listen(self, peer: int, heartbeat_timeout_s: float | int) -> None:
        receive = self._links[peer].receive
        while (message := receive(heartbeat_timeout_s)) is not None:
            if not self._expects(peer, message):
                break
            if "value" in message:
                self._values[peer].put(message["value"])
            elif message and not self._over:
                self._end(message["line"], message["status"])
        if not self._over:
            if not peer:
                _hold_aborts()
            self._end(f"{self._name(peer)} is gone; start all again: {self._resumption()}", GONE)
        self._values[peer].put(None)  # nobody needs it any more

    def _expects(self, peer: int, message: dict[str, Any]) -> bool:
        """Whether a process of the run sends such a message: a heartbeat, a value or an ending."""
        match message:
            case {"value": value, **rest}:
                whole = bool(peer) or (isinstance(value, list) and len(value) == self.count)
                return whole and not rest
            case {"line": str(), "status": status, **rest}:
                return status in (FAILED, GONE) and not rest
        return message == {}

    def _end(self, line: str, status: int, text: str = "") -> NoReturn:
        """Ends this process, and, if it is the lead, the others."""
        self._ending.acquire()  # never released: a second thread waits for the process to end
        self._over = True
        sys.stderr.write(text or f"error: {line}\n")  # one write, whatever other threads print
        self._send({"line": line, "status": status})
        if self.lead:  # last: without it, JAX aborts the others
            deadline = time.monotonic() + GRACE_S
            for listener in self._listeners:
                if listener is not threading.current_thread():
                    listener.join(max(0.0, deadline - time.monotonic()))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # cleaning up would wait for the others

    def _name(self, peer: int) -> str:
        return f"process {peer} of {self.count}"

    def _resumption(self) -> str:
        lookup = ThreadPoolExecutor(1).submit(self._last_step)
        try:  # an unreachable bucket is retried for minutes
            step = lookup.result(LOOKUP_S)
        except Exception:  # the line that names the dead process must come out in any case
            return "the run resumes from its last checkpoint"
        return f"the run resumes from step {step}" if step else "the run restarts from step 0"


def _hold_aborts() -> None:
    """Delays the abort of any thread by 6 s.

    JAX's client aborts as soon as the lead is dead, which is sooner than a bucket answers. No
    signal handler in Python would run.
    """
    libc = ctypes.CDLL(None)
    # A handler gets the number of its signal: sleep(6).
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
