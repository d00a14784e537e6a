"""Agreement of several processes on a stop. test_train tests the signals."""

from helpers.processes import connected

from glide_jax.parallel.process_group import ProcessGroup
from glide_jax.training import stop as stop_module
from glide_jax.training.stop import StopRequest


def counted(group):
    """Counts the group's calls of `gather`."""
    calls = []
    gather = group.gather
    group.gather = lambda value: calls.append(value) or gather(value)
    return calls


def last_step(group, requested_at):
    """Takes steps until the processes stop. Returns the last step and the number of comparisons."""
    calls = counted(group)
    stop, step = StopRequest(lambda line: None, group, step=100), 100
    while True:
        step += 1
        stop.requested = step >= requested_at
        if stop.after(step):
            return step, len(calls)


def test_all_processes_stop_after_the_same_step():
    with connected(3) as call:
        found = call(last_step, (10**9, 1_000, 10**9))
    (step, comparisons), *others = found
    assert others == [(step, comparisons)] * 2
    # Compared after 1, 2, 4, ... steps as long as they take no time, up to the most.
    most = stop_module.MAX_AGREE_STEPS
    assert 1_000 <= step < 1_000 + most and comparisons <= 1_000 / most + 7


def test_slow_steps_are_compared_one_by_one(monkeypatch):
    clock = iter(range(0, 10**6, 3))  # seconds
    monkeypatch.setattr(stop_module, "perf_counter", lambda: next(clock))
    assert last_step(Pair(), 120) == (120, 20)


class Pair(ProcessGroup):
    """Two processes that are alike."""

    def __init__(self):
        super().__init__(0, 2)

    def gather(self, value):
        return [value, value]


def test_a_single_process_stops_after_the_step_of_the_request():
    group = ProcessGroup()
    calls = counted(group)
    stop = StopRequest(lambda line: None, group, step=5)
    assert not stop.after(6) and stop.step == 7
    stop.requested = True
    assert stop.after(7) and not calls
