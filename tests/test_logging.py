"""What a run tells is in its files when the call returns."""

import json
import struct

import numpy as np
from tensorboardX.proto.event_pb2 import Event

from glide_jax.storage import AnyPath
from glide_jax.training.logging import METRICS, RunLog


def events(run_dir: AnyPath) -> list[Event]:
    """What TensorBoard is shown, from the first start to the last."""
    found = []
    for file in sorted((run_dir / "tensorboard").glob("events*")):
        content = file.read_bytes()
        while content:  # a record is its length, a checksum, itself, and another checksum
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def shown_numbers(run_dir: AnyPath) -> dict[tuple[int, str], np.float32]:
    """By step and name, without those that a later start has taken back."""
    numbers: dict[tuple[int, str], np.float32] = {}
    for event in events(run_dir):
        if event.HasField("session_log"):
            numbers = {key: value for key, value in numbers.items() if key[0] < event.step}
        for value in event.summary.value:
            if value.HasField("simple_value"):
                numbers[event.step, value.tag] = np.float32(value.simple_value)
    return numbers


def logged_numbers(run_dir: AnyPath) -> dict[tuple[int, str], np.float32]:
    """The same of metrics.jsonl."""
    lines = map(json.loads, (run_dir / METRICS).read_text().splitlines())
    return {
        (line["step"], name): np.float32(value)
        for line in lines
        for name, value in line.items()
        if name != "step"
    }


def test_what_is_logged_is_in_the_files_at_once(tmp_path):
    log = RunLog(tmp_path, 0, 10, 8)
    log.write(1, {"loss": 0.5, "skipped": 0})
    assert (
        shown_numbers(tmp_path) == logged_numbers(tmp_path) == {(1, "loss"): 0.5, (1, "skipped"): 0}
    )
    log.image(1, "samples", np.zeros((4, 6, 3), np.uint8))
    (shown,) = events(tmp_path)[-1].summary.value
    assert (shown.tag, shown.image.width, shown.image.height) == ("samples", 6, 4)
    log.close()


def test_a_run_that_goes_on_takes_back_what_was_logged_beyond(tmp_path):
    log = RunLog(tmp_path, 0, 10, 8)
    for step in (1, 2, 3):
        log.write(step, {"loss": step})
    log.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.rename(file.with_name("events.0"))  # the next one may begin in the same second
    log = RunLog(tmp_path, 2, 10, 8)
    assert (
        list(shown_numbers(tmp_path))
        == list(logged_numbers(tmp_path))
        == [(1, "loss"), (2, "loss")]
    )
    log.close()


def test_processes_that_do_not_lead_write_nothing(tmp_path):
    log = RunLog(tmp_path, 1, 10, 8, lead=False)
    log.write(1, {"loss": 0.5})
    log.image(1, "samples", np.zeros((4, 6, 3), np.uint8))
    log.close()
    assert not list(tmp_path.iterdir())
