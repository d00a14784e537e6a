"""Requests to stop a run: Ctrl-C, SIGTERM, and SIGHUP of a terminal that closes."""

import os
import signal
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Records a signal, so that the loop can save first; the second one interrupts.

    A second SIGHUP does not: a terminal that closes sends several. `nohup` ignores it; so it stays.

    Use it as a context manager in the main thread. The answer comes from a thread of its own:
    Python calls a signal's handler only once the main thread has left the computation of a step,
    or the compiler.

    Args:
        say: prints a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.requested = False
        self.step = 0
        """The step that is computed now."""
        self._say = say

    def __enter__(self) -> "StopRequest":
        self._before: dict[int, Any] = {
            number: signal.signal(number, self._handle)
            for number in SIGNALS
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        }
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._write)
        self._thread.join()
        os.close(self._read)

    def _handle(self, number: int, frame: object) -> None:
        if self.requested and number != signal.SIGHUP:
            raise KeyboardInterrupt
        self.requested = True

    def _answer(self) -> None:
        while received := os.read(self._read, 1):  # the signal's number; nothing once closed
            if received[0] in SIGNALS:
                self._say(f"finishing step {self.step:,} and saving; again to stop at once")
                return
