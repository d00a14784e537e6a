"""Metrics of dispatched steps: read one step late, so that an accelerator never waits for the host.

dispatch step k  ->  read the metrics of step k - 1  ->  dispatch step k + 1  ->  ...
"""

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax


class StepReport(NamedTuple):
    """A computed step."""

    step: int
    metrics: dict[str, float]
    wait_s: float
    """Seconds that the step waited for data."""


class PendingMetrics:
    """The metrics of the steps that were dispatched and not yet read, in order.

    Args:
        platform: of the devices: "cpu", "gpu" or "tpu".
    """

    def __init__(self, platform: str) -> None:
        # Two steps at a time, with collectives between CPU devices, can deadlock.
        self._waits = platform == "cpu"
        self._pending: deque[tuple[int, Mapping[str, Any], float]] = deque()

    def add(self, step: int, metrics: Mapping[str, Any], wait_s: float) -> None:
        """Adds a step that was just dispatched; on a CPU, waits for it. Args: see `StepReport`."""
        self._pending.append((step, metrics, wait_s))
        if self._waits:
            jax.block_until_ready(metrics)

    def read(self, *, last: bool) -> list[StepReport]:
        """The steps that were added and not yet read, in order.

        Args:
            last: wait for the last step too. Otherwise, an accelerator's is left for the next call.
        """
        reports = []
        while len(self._pending) > (0 if last or self._waits else 1):
            step, metrics, wait_s = self._pending.popleft()
            values = {name: float(x) for name, x in jax.device_get(metrics).items()}
            reports.append(StepReport(step, values, wait_s))
        return reports
