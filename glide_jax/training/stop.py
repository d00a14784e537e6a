"""Requests to stop a run: Ctrl-C, SIGTERM, and SIGHUP of a terminal that closes.

All processes stop after the same step. They compare their requests over the connections of the
process group, which no device waits for, after steps that they agree on in advance: after every
step at first, then at intervals of about AGREE_EVERY_S seconds.
"""

import os
import signal
import threading
from collections.abc import Callable
from time import perf_counter
from types import TracebackType
from typing import Any

from glide_jax.parallel.process_group import ProcessGroup

AGREE_EVERY_S = 2.0
"""Seconds between comparisons; a preempted machine may have no more than 30."""
MAX_AGREE_STEPS = 64
"""Most steps between comparisons, should steps become slower."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Records a signal, so that the loop can save first; the second one interrupts.

    A second SIGHUP does not: a terminal that closes sends several. `nohup` ignores it; so it stays.

    Use it as a context manager in the main thread. The answer comes from a thread of its own:
    Python calls a signal's handler only once the main thread has left the computation of a step,
    or the compiler.

    Args:
        say: prints a line.
        group: the processes of the run.
        step: steps already taken.
    """

    def __init__(
        self, say: Callable[[str], None], group: ProcessGroup | None = None, step: int = 0
    ) -> None:
        self.requested = False
        self.step = step + 1
        """The next step after which the run can stop."""
        self._say = say
        self._group = group or ProcessGroup()
        self._compared = step, perf_counter()

    def after(self, step: int) -> bool:
        """Whether the run stops after this step. All processes must call it after every step."""
        if step < self.step:
            return False
        if self._group.count == 1:
            self.step = step + 1
            return self.requested
        (last_step, last_s), now_s = self._compared, perf_counter()
        steps = step - last_step
        answers = self._group.gather([self.requested, (now_s - last_s) / steps])
        slowest_s = max(step_s for _, step_s in answers)
        # At most twice the last interval: the first steps may only have been dispatched.
        self.step = step + max(1, min(2 * steps, MAX_AGREE_STEPS, int(AGREE_EVERY_S / slowest_s)))
        self._compared = step, perf_counter()
        return any(requested for requested, _ in answers)

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
