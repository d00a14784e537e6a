"""train.py as a user runs it: it learns, and nothing that stops it loses anything."""

import json
import resource
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import COLOURS
from PIL import Image

from glide_jax import Glide, UserError
from glide_jax.models.glide import glide_network
from glide_jax.training.checkpoint import Checkpoints, load_run_config
from glide_jax.training.step import Trainer


def metrics(run_dir: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    clock = ("images_per_s", "loader_wait_share")
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]


def finish(process, status=0):
    out, errors = process.communicate(timeout=600)
    assert process.returncode == status, errors
    return out + errors


def wait_for(condition, process):
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_same_result(run_dir, reference):
    assert metrics(run_dir) == metrics(reference)
    ours, theirs = Glide.load(run_dir).params, Glide.load(reference).params
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_overfits_eight_pictures(trained_run):
    losses = [line["loss"] for line in metrics(trained_run) if "loss" in line]
    assert np.mean(losses[-5:]) < 0.2 * losses[0]
    glide = Glide.load(trained_run)
    pictures = glide.generate([f"all {name}" for name in COLOURS], steps=30, seed=1)
    mean_colours = pictures.mean((1, 2))
    distance = np.linalg.norm(mean_colours[:, None] - np.array(list(COLOURS.values())), axis=-1)
    assert (distance.argmin(1) == np.arange(8)).sum() >= 7


def test_run_folder_holds_everything(trained_run):
    names = {path.name for path in trained_run.iterdir()}
    assert {"config.json", "tokenizer", "checkpoints", "samples", "metrics.jsonl"} <= names
    assert list((trained_run / "tensorboard").glob("events*"))
    assert sorted(p.name for p in (trained_run / "checkpoints").iterdir()) == ["100", "200", "300"]
    assert Image.open(trained_run / "samples" / "0000300.png").size[0] > 400
    steps = [line["step"] for line in metrics(trained_run) if "loss" in line]
    assert steps == list(range(10, 301, 10))
    validated = [line["step"] for line in metrics(trained_run) if "validation_loss" in line]
    assert validated == [150, 300]


def test_killed_run_resumes_bit_for_bit(train, trained_run, tmp_path):
    process = train(tmp_path)
    wait_for((tmp_path / "checkpoints" / "100").is_dir, process)
    process.kill()
    process.wait()
    assert Checkpoints(tmp_path).latest_step < 300
    # What a write cut short leaves behind: a temporary folder, and half a line of metrics.
    (tmp_path / "checkpoints" / "290.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "metrics.jsonl").open("a").write('{"step": 290, "lo')
    assert "resumed at step" in finish(train(tmp_path))
    assert_same_result(tmp_path, trained_run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_and_goes_on_later(train, trained_run, tmp_path, number):
    process = train(tmp_path)
    log = tmp_path / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.read_text(), process)
    process.send_signal(number)
    assert "the same command goes on from here" in finish(process)
    step = Checkpoints(tmp_path).latest_step
    assert step is not None and step < 300
    if number == signal.SIGTERM:
        finish(train(tmp_path))
        assert_same_result(tmp_path, trained_run)


def test_too_many_steps_that_are_not_finite_stop_the_run(train, tmp_path):
    flags = ("--optim.learning-rate", "1e30", "--train.max-bad-steps", "3")
    said = finish(train(tmp_path, *flags), status=2)
    assert "error: step" in said and "lower optim.learning_rate" in said
    assert "Traceback" not in said


def test_write_that_fails_ends_in_one_clear_line(train, tmp_path):
    def limit_file_size():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    said = finish(train(tmp_path, preexec_fn=limit_file_size), status=2)
    # Orbax's writer threads say more, before it and after it.
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert line.startswith(f"error: cannot save checkpoints in {tmp_path / 'checkpoints'}")
    assert "File too large" in line


def test_full_disk_is_noticed_before_anything_is_written(trained_run, monkeypatch, tmp_path):
    config = load_run_config(trained_run)
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), devices=jax.devices()[:1])
    state = Trainer(config, glide_network(config.model), mesh).init()
    checkpoints = Checkpoints(tmp_path, kept=1)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(UserError, match=r"MB are needed and 1 MB are free"):
        checkpoints.save(state, {})
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--model.unet.channels", "64"), "model.unet.channels is 64, but the run in"),
        (("--diffusion.schedule", "linear"), "diffusion.schedule is linear, but the run in"),
        (("--model.unet.channels", "33"), "model.unet.channels (33) must be divisible by 32"),
        (("--data.path", "nowhere"), "nowhere"),
        (("--train.batch-examples", "0"), "train.batch_examples must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(train, trained_run, flags, line):
    said = finish(train(trained_run, *flags), status=2)
    assert line in said
    assert "Traceback" not in said


def test_unknown_flag_and_missing_config(train, python, trained_run):
    assert "--optim.speed" in finish(train(trained_run, "--optim.speed", "3"), status=2)
    assert "--config FILE is needed" in finish(python("train.py"), status=2)
    assert "no such .py or .json" in finish(python("train.py", "--config", "no.py"), status=2)
    assert "--optim.learning-rate" in finish(python("train.py", "--help"))
