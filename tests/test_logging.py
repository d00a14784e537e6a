"""The log of a run is in its files when each call returns."""

import errno
import json
import struct
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from helpers.tiny import get_config
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from glide_jax.errors import UserError
from glide_jax.plot.curves import read_curves
from glide_jax.runs.folder import Run
from glide_jax.runs.paths import METRICS
from glide_jax.storage import AnyPath
from glide_jax.training.logging import RunLog, validation_line


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
    with (tmp_path / "metrics.jsonl").open("ab") as lines:  # of a killed process, a bad disk
        lines.write(b'[3]\n{"loss": 1}\n\xff\n{"step": "3"}\n{"st')
    log = run_log(tmp_path, 2)
    assert (
        list(shown_numbers(tmp_path))
        == list(logged_numbers(tmp_path))
        == [(1, "loss"), (2, "loss")]
    )
    log.close()


def test_a_disk_that_is_full_at_the_start_leaves_the_metrics(tmp_path, monkeypatch):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1}\n{"step": 2}\n', encoding="utf-8")

    def full(path, content):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"^cannot write the log in .*No space left"):
        run_log(tmp_path, 1)
    assert metrics.read_text(encoding="utf-8") == '{"step": 1}\n{"step": 2}\n'


def test_processes_other_than_the_lead_write_nothing(tmp_path):
    log = run_log(tmp_path, 1, lead=False)
    log.write(1, {"loss": 0.5})
    log.samples(1, np.zeros((4, 6, 3), np.uint8))
    log.close()
    assert not list(tmp_path.iterdir())


def strict_lines(run_dir):
    """The lines of metrics.jsonl; raises where Python's parser alone would accept them."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    text = (run_dir / METRICS).read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_a_window_has_the_last_counts_and_the_means_of_finite_values(tmp_path):
    log = run_log(tmp_path)
    for skipped, loss in ((0, 1.0), (1, float("nan")), (2, float("inf")), (2, 4.0)):
        metrics = {"learning_rate": skipped / 4, "skipped": float(skipped)}
        log.step(metrics | {"loss": loss, "grad_norm": np.nan}, 0.0)
    log.write_window(4)
    log.write(4, {"validation_loss": float("nan"), "validation_mse": 0.5})
    log.close()
    window, validation = strict_lines(tmp_path)
    assert (window["loss"], window["skipped"], window["grad_norm"]) == (2.5, 2, None)
    assert window["learning_rate"] == 0.5
    assert validation == {"step": 4, "validation_loss": None, "validation_mse": 0.5}
    assert shown_numbers(tmp_path)[4, "skipped"] == 2  # TensorBoard
    curves = read_curves(tmp_path)
    assert curves["loss"].values.tolist() == [2.5]
    assert not {"grad_norm", "validation_loss"} & curves.keys()


def test_a_line_on_the_terminal_says_what_is_not_finite(tmp_path, capsys):
    log = run_log(tmp_path)
    log.step({"loss": float("nan"), "skipped": 3.0}, 0.0)
    log.write_window(1, learning_rate=2.5e-4)
    log.close()
    assert "loss not finite, learning rate 0.00025," in capsys.readouterr().out
    values = {"validation_loss": 0.25, "validation_loss_raw": 0.5, "validation_mse_t000-199": 1.0}
    assert validation_line(values, 3.2) == "validation: loss 0.2500 (raw 0.5000), 3 s"
    values |= {"validation_loss_shuffled_captions": 0.3, "validation_loss_no_captions": 0.26}
    assert validation_line(values, 3.2) == (
        "validation: loss 0.2500 (raw 0.5000), shuffled captions 0.3000 (+20.0%), "
        "no captions 0.2600 (+4.0%), 3 s"
    )


class FullDisk:
    """A file whose disk has some bytes left."""

    def __init__(self, file, left):
        self.file, self.left = file, left

    def write(self, content):
        if not self.left:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.file.write(content[: self.left])
        self.left -= written
        return written

    def close(self):
        self.file.close()


def test_a_full_disk_does_not_end_training_and_loses_no_line(tmp_path, capsys):
    log = run_log(tmp_path)
    log._metrics = disk = FullDisk(log._metrics, left=30)
    for step in (1, 2, 3):
        log.write(step, {"loss": 0.5})
    disk.left = 10**6
    log.write(4, {"loss": 0.5})
    log.close()
    assert [line["step"] for line in strict_lines(tmp_path)] == [1, 2, 3, 4]
    warning = f"warning: cannot write {tmp_path}/metrics.jsonl: No space left on device;"
    assert capsys.readouterr().out.count(warning) == 1


def test_training_goes_on_without_tensorboard_or_a_terminal(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    log = run_log(tmp_path)
    monkeypatch.setattr(log._tensorboard, "flush", full)
    for step in (1, 2):
        log.write(step, {"loss": 0.5})
    assert capsys.readouterr().out.count("warning: cannot write") == 1
    monkeypatch.setattr(log._bar, "write", full)
    log.say("to nobody")
    log.close()
    assert [line["step"] for line in strict_lines(tmp_path)] == [1, 2]


def test_a_bucket_that_cannot_be_reached_is_a_warning_each_time_it_is_lost(
    tmp_path, capsys, monkeypatch
):
    error = UserError("cannot write gs://b/x: timeout")
    log = run_log(tmp_path)
    monkeypatch.setattr(log._files, "copy", Mock(side_effect=[error, error, None, error]))
    for _ in range(4):
        log.copy()
    line = "warning: cannot write gs://b/x: timeout; training continues"
    assert capsys.readouterr().out.splitlines() == [line] * 2
    log.close()


def test_a_log_that_cannot_be_opened_is_one_line(tmp_path):
    (tmp_path / "tensorboard").touch()
    with pytest.raises(UserError, match=f"^cannot write the log in {tmp_path}: .*tensorboard"):
        run_log(tmp_path)


def test_a_grid_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "samples").touch()
    with run_log(tmp_path) as log, pytest.raises(UserError, match=r"^cannot write .*0000001\.png"):
        log.samples(1, np.zeros((4, 6, 3), np.uint8))
