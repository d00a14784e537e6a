"""train.py as a user runs it: it learns, and resumes after any interruption."""

import errno
import hashlib
import json
import os
import queue
import random
import re
import resource
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import COLORS
from PIL import Image

from glide_jax import Glide, UserError
from glide_jax.errors import system_cause
from glide_jax.runs.checkpoint import Checkpoints
from glide_jax.runs.folder import Run
from glide_jax.train import main
from glide_jax.training.denoising import Denoising
from glide_jax.training.step import Trainer
from glide_jax.training.stop import StopRequest


def metrics(run_dir: Path) -> list[dict]:
    """metrics.jsonl without the values that depend on the clock."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    clock = ("images_per_s", "step_s", "loader_wait_fraction")
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
    ours, theirs = (Glide.load(run).stage("base").params for run in (run_dir, reference))
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_overfits_eight_images(trained_run):
    losses = [line["loss"] for line in metrics(trained_run) if "loss" in line]
    assert np.mean(losses[-5:]) < 0.2 * losses[0]
    glide = Glide.load(trained_run)
    samples = glide.generate([f"all {name}" for name in COLORS], steps=30, seed=1)
    mean_colors = samples.images.mean((1, 2))
    distance = np.linalg.norm(mean_colors[:, None] - np.array(list(COLORS.values())), axis=-1)
    assert (distance.argmin(1) == np.arange(8)).sum() >= 7


def test_the_run_folder_is_complete(trained_run):
    names = {path.name for path in trained_run.iterdir()}
    assert {"config.json", "tokenizer", "checkpoints", "samples", "metrics.jsonl"} <= names
    assert list((trained_run / "tensorboard").glob("events*"))
    assert sorted(p.name for p in (trained_run / "checkpoints").iterdir()) == ["160", "240", "80"]
    assert Image.open(trained_run / "samples" / "0000240.png").size[0] > 400
    steps = [line["step"] for line in metrics(trained_run) if "loss" in line]
    assert steps == list(range(10, 241, 10))
    validated = [line["step"] for line in metrics(trained_run) if "validation_loss" in line]
    assert validated == [120, 240]


SHORT = ("--train.steps", "50", "--train.checkpoint-every-steps", "15")


@pytest.fixture(scope="module")
def short_run(train, tmp_path_factory):
    """An uninterrupted run of 50 steps."""
    run_dir = tmp_path_factory.mktemp("short") / "run"
    finish(train(run_dir, *SHORT))
    return run_dir


@pytest.mark.slow
def test_an_interrupted_run_resumes_bit_for_bit(train, short_run, tmp_path):
    # Asked to stop, it saves first.
    process = train(tmp_path, *SHORT)
    log = tmp_path / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.read_text(), process)
    process.send_signal(signal.SIGTERM)
    assert "the same command resumes" in finish(process)
    stopped = Checkpoints(tmp_path).latest_step
    assert 0 < stopped < 30
    # Killed, it loses the steps since its last checkpoint.
    process = train(tmp_path, *SHORT)
    wait_for((tmp_path / "checkpoints" / "30").is_dir, process)
    process.kill()
    process.wait()
    assert stopped < Checkpoints(tmp_path).latest_step < 50
    # An interrupted write leaves a temporary folder and half a line of metrics.
    (tmp_path / "checkpoints" / "45.orbax-checkpoint-tmp").mkdir(exist_ok=True)
    log.open("a").write('{"step": 45, "lo')
    assert "resumed at step" in finish(train(tmp_path, *SHORT))
    assert_same_result(tmp_path, short_run)


@pytest.mark.slow
def test_kills_during_start_up_harm_nothing(train, short_run, tmp_path):
    rng = random.Random(0)
    for start in ("of a new run", "of one that has a folder", "of one that resumes"):
        process = train(tmp_path, *SHORT)
        if start == "of one that resumes":
            wait_for((tmp_path / "checkpoints" / "15").is_dir, process)
        else:
            wait_for((tmp_path / ".lock").exists, process)
            time.sleep(rng.uniform(0, 3))
        process.kill()
        process.communicate()
    process = train(tmp_path, *SHORT)
    time.sleep(rng.uniform(2, 6))
    process.kill()
    process.communicate()
    finish(train(tmp_path, *SHORT))
    assert_same_result(tmp_path, short_run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_stop_request_is_recorded_and_the_second_one_interrupts(number):
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        said = queue.Queue()
        with StopRequest(said.put, step=35) as stop:
            assert not stop.requested
            signal.raise_signal(number)
            assert stop.requested
            assert said.get(timeout=5) == "finishing step 36 and saving; again to stop at once"
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
        assert said.empty()
        assert handlers == {n: signal.getsignal(n) for n in handlers}
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_terminal_that_closes_is_a_stop_request():
    """It sends several SIGHUP; nohup's ignored one stays ignored."""
    handler = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        said = queue.Queue()
        with StopRequest(said.put) as stop:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)
            assert stop.requested
            assert said.get(timeout=5).startswith("finishing step")
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopRequest(said.put) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, handler)


def test_a_stop_request_is_answered_while_the_main_thread_computes():
    """Python's own handlers run only after a computation in C, such as XLA's."""
    answered = []
    with StopRequest(lambda line: answered.append(stop.requested)) as stop:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        while not stop.requested:
            hashlib.pbkdf2_hmac("sha256", b"", b"", 300_000)
    assert answered == [False]


@pytest.mark.slow
def test_too_many_non_finite_steps_stop_the_run(train, tmp_path):
    flags = ("--optim.learning-rate", "1000", "--optim.weight-decay", "1")
    flags += ("--train.max-bad-steps", "3")
    output = finish(train(tmp_path, *flags), status=2)
    assert "error: step" in output and "lower optim.learning_rate" in output
    assert f"{tmp_path} has no checkpoint" in output
    assert "Traceback" not in output


def test_a_failed_write_ends_the_run_with_one_line(train, tmp_path):
    def limit_file_size():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    soon = ("--train.checkpoint-every-steps", "5")
    output = finish(train(tmp_path, *soon, preexec_fn=limit_file_size), status=2)
    # Orbax's writer threads print more, even on the same line.
    folder = re.escape(str(tmp_path / "checkpoints"))
    assert re.search(f"error: cannot save checkpoints in {folder}: .*File too large", output)


def test_a_failed_write_is_explained_by_the_system_error():
    text = f'Error writing {"x" * 400}: Failed writing: "/a/b": {os.strerror(errno.ENOSPC)} [more]'
    assert system_cause(OSError(text)) == os.strerror(errno.ENOSPC)


def test_a_full_disk_is_noticed_before_anything_is_written(trained_run, monkeypatch, tmp_path):
    config = Run.open(trained_run).config
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), devices=jax.devices()[:1])
    state = Trainer(config, Denoising(config), mesh).init()
    checkpoints = Checkpoints(tmp_path, max_checkpoints=1)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(UserError, match=r"MB are needed and 1 MB are free"):
        checkpoints.save(state, {})
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--model.unet.channels", "64"), "model.unet.channels is 64, but the run in"),
        (("--optim.first-moment-dtype", "bfloat16"), "optim.first_moment_dtype is bfloat16, but"),
        (("--diffusion.schedule", "linear"), "diffusion.schedule is linear, but the run in"),
        (("--model.unet.channels", "33"), "model.unet.channels (33) must be divisible by 32"),
        (("--data.source", "folder", "nowhere"), "nowhere"),
        (("--train.batch-examples", "0"), "train.batch_examples must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(train_flags, trained_run, flags, line):
    jax.devices()  # the command must not change the devices of this process
    with pytest.raises(UserError, match=re.escape(line)):
        main(train_flags(trained_run, *flags))


def test_a_bad_setting_ends_the_command_with_one_line(train, tmp_path):
    process = train(tmp_path / "run", "--train.batch-examples", "0")
    out, errors = process.communicate(timeout=600)
    line = "error: config: train.batch_examples must be at least 1, not 0\n"
    assert (process.returncode, out, errors) == (2, "", line)


def test_unknown_flags_are_refused_by_name(train_flags, tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        main(train_flags(tmp_path, "--optim.speed", "3"))
    assert refused.value.code == 2
    assert "--optim.speed" in "".join(capsys.readouterr())


def test_a_missing_config_is_refused(capsys):
    with pytest.raises(UserError, match="--config is needed"):
        main([])
    with pytest.raises(UserError, match=r"no such \.py or \.json"):
        main(["--config", "no.py"])


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit) as shown:
        main(["--help"])
    assert not shown.value.code
    assert "--optim.learning-rate" in capsys.readouterr().out
