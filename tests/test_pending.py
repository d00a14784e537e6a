"""Reading of metrics: after which dispatch, and under which step."""

import jax.numpy as jnp
import pytest

from glide_jax.training.pending import PendingMetrics


class Device:
    """Arrays that record when the host waits for them."""

    def __init__(self, events):
        self.events = events

    def dispatch(self, step):
        self.events.append(f"dispatch {step}")
        return {"loss": Recorded(step, self.events)}


class Recorded:
    def __init__(self, step, events):
        self.step, self.events, self.read = step, events, False

    def __array__(self, dtype=None, copy=None):
        self.events.append(f"read {self.step}")
        return jnp.float32(self.step).__array__()

    def block_until_ready(self):
        self.events.append(f"wait {self.step}")
        return self


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_an_accelerator_computes_a_step_while_the_host_reads_the_one_before(platform):
    events = []
    device, pending = Device(events), PendingMetrics(platform)
    reports = []
    for step in range(1, 6):
        pending.add(step, device.dispatch(step), wait_s=step / 10)
        reports += pending.read(last=step in (3, 5))  # a checkpoint, and the end
    assert events == [
        *("dispatch 1", "dispatch 2", "read 1"),
        *("dispatch 3", "read 2", "read 3"),
        *("dispatch 4", "dispatch 5", "read 4", "read 5"),
    ]
    # Every step under its own number, with its own metrics.
    assert reports == [(step, {"loss": step}, step / 10) for step in range(1, 6)]


def test_a_cpu_takes_one_step_at_a_time():
    events = []
    device, pending = Device(events), PendingMetrics("cpu")
    for step in (1, 2):
        pending.add(step, device.dispatch(step), wait_s=0.0)
        assert [report.step for report in pending.read(last=False)] == [step]
    assert events == [
        *("dispatch 1", "wait 1", "read 1"),
        *("dispatch 2", "wait 2", "read 2"),
    ]
