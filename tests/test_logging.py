"""The log of a run is in its files when each call returns."""

import json
import struct

import numpy as np
from helpers.tiny import get_config
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from glide_jax.runs.folder import Run
from glide_jax.runs.paths import METRICS
from glide_jax.storage import AnyPath
from glide_jax.training.logging import RunLog


def events(run_dir: AnyPath) -> list[Event]:
    """TensorBoard's events, from the first start to the last."""
    found = []
    for file in sorted((run_dir / "tensorboard").glob("events*")):
        content = file.read_bytes()
        while content:  # a record is its length, a checksum, itself, and another checksum
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def shown_numbers(run_dir: AnyPath) -> dict[tuple[int, str], np.float32]:
    """Scalars by step and name, without those that a later start hides."""
    numbers: dict[tuple[int, str], np.float32] = {}
    for event in events(run_dir):
        if event.HasField("session_log"):
            numbers = {key: value for key, value in numbers.items() if key[0] < event.step}
        for value in event.summary.value:
            if value.HasField("simple_value"):
                numbers[event.step, value.tag] = np.float32(value.simple_value)
    return numbers


def logged_numbers(run_dir: AnyPath) -> dict[tuple[int, str], np.float32]:
    """Values of metrics.jsonl by step and name."""
    lines = map(json.loads, (run_dir / METRICS).read_text().splitlines())
    return {
        (line["step"], name): np.float32(value)
        for line in lines
        for name, value in line.items()
        if name != "step"
    }


def run_log(run_dir, start_step=0, **options):
    return RunLog(Run(run_dir, get_config()), start_step, **options)


def test_each_entry_is_in_the_files_when_the_call_returns(tmp_path):
    log = run_log(tmp_path)
    log.write(1, {"loss": 0.5, "skipped": 0})
    assert (
        shown_numbers(tmp_path) == logged_numbers(tmp_path) == {(1, "loss"): 0.5, (1, "skipped"): 0}
    )
    log.samples(1, np.zeros((4, 6, 3), np.uint8))
    assert Image.open(tmp_path / "samples" / "0000001.png").size == (6, 4)
    (shown,) = events(tmp_path)[-1].summary.value
    assert (shown.tag, shown.image.width, shown.image.height) == ("samples", 6, 4)
    log.close()


def test_a_resumed_run_removes_entries_beyond_its_start(tmp_path):
    log = run_log(tmp_path)
    for step in (1, 2, 3):
        log.write(step, {"loss": step})
    log.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.rename(file.with_name("events.0"))  # the next file may get the same name, by the second
    log = run_log(tmp_path, 2)
    assert (
        list(shown_numbers(tmp_path))
        == list(logged_numbers(tmp_path))
        == [(1, "loss"), (2, "loss")]
    )
    log.close()


def test_processes_other_than_the_lead_write_nothing(tmp_path):
    log = run_log(tmp_path, 1, lead=False)
    log.write(1, {"loss": 0.5})
    log.samples(1, np.zeros((4, 6, 3), np.uint8))
    log.close()
    assert not list(tmp_path.iterdir())
