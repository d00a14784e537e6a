"""Runs of several processes: same results as one, one line on errors, resuming in any number."""

import os
import random
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
from helpers.broken_network import Network
from helpers.model_set import clip_config, upsampler_config
from helpers.packed_images import image
from helpers.processes import finish_all, free_port, strangers
from test_checkpoint import data_file, flip
from test_train import assert_same_result, metrics, wait_for
from test_train_stages import changed, on_colors

from glide_jax.config import Config
from glide_jax.data.shards import Shard, encode, shard_name, write_index, write_records
from glide_jax.parallel.process_group import GONE
from glide_jax.runs.lock import LOCK
from glide_jax.runs.paths import last_step

STEPS = 9
SHARDED = "--model.unet.channels 96"  # with fewer, no parameter would be large enough
SHORT = (
    f"{SHARDED} --train.steps {STEPS} --train.checkpoint-every-steps 3 --train.max-checkpoints 9"
)
SHORT += f" --train.log-every-steps 1 --train.sample-every-steps {STEPS}"
SHORT += f" --train.validate-every-steps {STEPS}"


@pytest.fixture(scope="module")
def start(train):
    """Starts the processes of a run: `start(run_dir, count, devices per process, *flags)`."""

    def start(run_dir, count, devices, *flags):
        port = free_port()
        launch = ("--coordinator", f"127.0.0.1:{port}", "--processes", count, "--process")
        return [
            train(
                run_dir,
                *SHORT.split(),
                *flags,
                *((*launch, index) if count > 1 else ()),
                environment={"JAX_NUM_CPU_DEVICES": str(devices)},
            )
            for index in range(count)
        ]

    return start


def losses(run_dir):
    return {
        (line["step"], name): value
        for line in metrics(run_dir)
        for name, value in line.items()
        if "loss" in name or "mse" in name
    }


def assert_close(run_dir, reference, steps=range(1, STEPS + 1)):
    ours, theirs = losses(run_dir), losses(reference)
    theirs = {(step, name): value for (step, name), value in theirs.items() if step in steps}
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_allclose(ours[key], value, rtol=2e-4, err_msg=str(key))


def cut(run_dir, to, step):
    """Copies a run folder without the checkpoints after a step."""
    shutil.copytree(run_dir, to)
    for path in (to / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)


@pytest.mark.slow
def test_bad_input_ends_every_process_with_one_line(start, color_folder, tmp_path):
    no_folder = color_folder / "red.png" / "run"  # which only the lead writes
    shard = shard_name("all", 0, 1)
    write_records(tmp_path / shard, [encode(image(0), ("an image",), "0.png")])
    splits = {"all": [Shard(shard, 1, (tmp_path / shard).stat().st_size)]}
    write_index(str(tmp_path), splits, "of this test")
    os.truncate(tmp_path / shard, 500)
    bad = {
        f"{tmp_path}/{shard} has 500 bytes, but": (
            tmp_path / "run",
            "--data.source",
            "shards",
            tmp_path,
        ),
        "train.fsdp (3) must divide": (tmp_path / "mesh", "--train.fsdp", 3),
        f"cannot write the run folder {no_folder}": (no_folder,),
    }
    started = {line: start(run_dir, 2, 1, *flags) for line, (run_dir, *flags) in bad.items()}
    for line, processes in started.items():
        for _, errors in finish_all(processes, status=2):
            (said,) = (text for text in errors.splitlines() if text.startswith("error: "))
            assert line in said
            assert "Traceback" not in errors


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    """An uninterrupted run of one process with one device."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    finish_all(start(run_dir, 1, 1))
    return run_dir


@pytest.fixture(scope="module")
def pair(start, tmp_path_factory):
    """The same run with two processes of two devices each."""
    run_dir = tmp_path_factory.mktemp("pair") / "run"
    outputs = finish_all(start(run_dir, 2, 2, "--train.fsdp", 2))
    assert f"done: {STEPS} steps" in outputs[0][0]
    for word in ("step/s", "parameters", "done"):  # only the lead prints
        assert word not in "".join(outputs[1])
    return run_dir


@pytest.fixture(scope="module")
def start_in_turn(python, tmp_path_factory):
    """Starts processes that train configurations: `start_in_turn(count, {run_dir: config})`."""

    def start(count, configs, ports=(), *flags):
        files, ports = [], ports or [free_port()] * count
        for run_dir, config in configs.items():
            config = changed(config, "train", run_dir=str(run_dir))
            files.append(tmp_path_factory.mktemp("config") / "config.json")
            files[-1].write_text(config.to_json())
        return [
            python(
                *(
                    "-m",
                    "tests.helpers.train_in_turn",
                    *files,
                    "--process",
                    index,
                    "--processes",
                    count,
                ),
                *("--coordinator", f"127.0.0.1:{ports[index]}", *flags),
                environment={"JAX_NUM_CPU_DEVICES": "1"},
            )
            for index in range(count)
        ]

    return start


# Sampling and validation would be compiled too.
QUIET = {"sample_every_steps": 0, "validate_every_steps": 0, "log_every_steps": 1}


@pytest.mark.slow
def test_two_processes_train_as_one_does(alone, pair):
    assert_close(pair, alone)
    names = {path.name for path in pair.iterdir()} - {LOCK}
    assert names == {"config.json", "tokenizer", "checkpoints", "samples", "metrics.jsonl"} | {
        "tensorboard"
    }
    assert [path.name for path in (pair / "samples").iterdir()] == [f"{STEPS:07d}.png"]


@pytest.mark.slow
def test_two_stopped_or_killed_processes_resume_bit_for_bit(start, pair, tmp_path):
    flags = ("--train.fsdp", 2)
    saved = lambda step: (tmp_path / "checkpoints" / str(step)).is_dir  # noqa: E731
    # A signal to either process makes both save.
    started = start(tmp_path, 2, 2, *flags)
    log = tmp_path / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.read_text(), started[0])
    started[1].send_signal(signal.SIGTERM)
    outputs = finish_all(started)
    stopped = last_step(tmp_path)
    assert f"stopped at step {stopped} of {STEPS}" in outputs[0][0]
    assert 0 < stopped < 6
    # The lead is killed.
    started = start(tmp_path, 2, 2, *flags)
    wait_for(saved(6), started[0])
    started[0].kill()
    ((_, errors),) = finish_all([started[1]], status=GONE)
    line = "error: process 0 of 2 is gone; start all again: the run resumes from step"
    assert f"{line} {last_step(tmp_path)}\n" in errors
    started[0].communicate()
    finish_all(start(tmp_path, 2, 2, *flags))
    assert_same_result(tmp_path, pair)


@pytest.mark.slow
def test_one_process_resumes_a_run_of_two(start, pair, tmp_path):
    run_dir = tmp_path / "run"
    cut(pair, run_dir, 9)
    flip(data_file(run_dir, 9, "ema"), random.Random(0))  # resumes from step 6
    shorter = ("--train.steps", 8, "--train.validate-every-steps", 0)
    outputs = finish_all(start(run_dir, 1, 1, "--train.sample-every-steps", 0, *shorter))
    assert "9 is damaged" in outputs[0][1] and "resumed at step 6" in outputs[0][0]
    # The fingerprints have shown that the state is the same, bit for bit.
    assert metrics(run_dir)[:6] == metrics(pair)[:6]
    assert_close(run_dir, pair, steps=range(1, 9))


@pytest.mark.slow
def test_four_processes_train_as_one_does_and_resume_a_run_of_two(
    start_in_turn, alone, pair, tmp_path
):
    new, resumed = tmp_path / "new", tmp_path / "resumed"
    cut(pair, resumed, 9)
    flip(data_file(resumed, 9, "ema"), random.Random(0))
    config = changed(Config.load(pair / "config.json"), "train", fsdp=4, **QUIET)
    configs = {run: changed(config, "train", steps=n) for run, n in ((new, 3), (resumed, 8))}
    outputs = finish_all(start_in_turn(4, configs))
    assert "9 is damaged" in outputs[0][1] and "resumed at step 6" in outputs[0][0]
    assert_close(new, alone, steps=range(1, 4))
    assert metrics(resumed)[:6] == metrics(pair)[:6]
    assert_close(resumed, pair, steps=range(1, 9))


@pytest.mark.slow
def test_two_processes_train_every_other_stage_as_one_does(start_in_turn, color_folder, tmp_path):
    upsampler = upsampler_config(inpaint=True)
    unet = replace(upsampler.model.unet, channel_mult=(1,))
    settings = QUIET | {"steps": 3}
    stages = {
        # CLIP's loss compares all images of the batch, across processes.
        "clip": on_colors(clip_config(), color_folder, **settings | {"validate_every_steps": 3}),
        "upsampler": on_colors(changed(upsampler, "model", unet=unet), color_folder, **settings),
    }
    for count in (1, 2):
        configs = {tmp_path / f"{name}{count}": config for name, config in stages.items()}
        finish_all(start_in_turn(count, configs))
    for name in stages:
        assert_close(tmp_path / f"{name}2", tmp_path / f"{name}1", steps=range(1, 4))


@pytest.mark.slow
def test_a_network_cut_during_training_ends_both_sides(start_in_turn, color_folder, tmp_path):
    network = Network(free_port())
    settings = QUIET | {"steps": 10**9, "checkpoint_every_steps": 1000}
    endless = on_colors(clip_config(), color_folder, **settings)
    ports = network.lead_port, network.port
    started = start_in_turn(2, {tmp_path: endless}, ports, "--heartbeat-timeout-s", 5)
    log = tmp_path / "metrics.jsonl"
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 3, started[0])
    network.cut.set()
    cut_at = time.monotonic()
    for index, (_, errors) in enumerate(finish_all(started, status=GONE, limit_s=60)):
        assert f"error: process {1 - index} of 2 is gone; start all again: the run" in errors
    assert time.monotonic() - cut_at < 30


@pytest.mark.slow
def test_other_programs_that_connect_neither_end_nor_stop_a_run(
    start_in_turn, color_folder, tmp_path
):
    config = on_colors(clip_config(), color_folder, **QUIET | {"steps": 10})
    port = free_port()
    with strangers(port) as connections:
        outputs = finish_all(start_in_turn(2, {tmp_path: config}, (port, port)), limit_s=60)
    assert "done: 10 steps" in outputs[0][0]
    assert connections[0] > 100
