"""Requests to stop a run: Ctrl-C and SIGTERM."""

import signal


class StopRequest:
    """Records Ctrl-C or SIGTERM, so that the loop can save first; the second one interrupts."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
