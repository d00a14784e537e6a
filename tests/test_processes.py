"""Several processes train one run: they agree, end together, and go on in any number."""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import tyro
from helpers.broken_network import Network
from helpers.model_set import clip_config, upsampler_config
from helpers.packed_images import image
from helpers.tiny import get_config
from test_checkpoint import data_file, flip
from test_train import assert_same_result, metrics, wait_for
from test_train_stages import changed, on_colors

from glide_jax import UserError
from glide_jax.config import Config
from glide_jax.data.shards import Shard, encode, shard_name, write_index, write_records
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.parallel.launch import Launch, LaunchFlags, require_same
from glide_jax.parallel.process_group import GONE, ProcessGroup
from glide_jax.parallel.rendezvous import listen, rendezvous
from glide_jax.runs import folder
from glide_jax.runs.layout import last_step

STEPS = 9
SMALL = "--model.unet.channels 96 --model.unet.channel-mult 1 --model.unet.attention-px 8"
SHORT = f"{SMALL} --train.steps {STEPS} --train.checkpoint-every-steps 3 --train.max-checkpoints 9"
SHORT += f" --train.log-every-steps 1 --train.sample-every-steps {STEPS}"
SHORT += f" --train.validate-every-steps {STEPS}"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


# Who takes part -----------------------------------------------------------------------------------


def parsed(text: str, **environment: str) -> Launch:
    return Launch.of(tyro.cli(LaunchFlags, args=text.split()), environment)


def test_flags_and_environment_say_who_takes_part():
    assert parsed("") == Launch()
    launch = parsed("--coordinator 127.0.0.1:1234 --processes 4 --process 2")
    assert (launch.coordinator, launch.processes, launch.process) == ("127.0.0.1:1234", 4, 2)
    assert not launch.found_by_jax
    assert launch.sharing_cores == 4  # the coordinator says that they are all on this machine
    assert replace(launch, coordinator="10.0.0.1:1234").sharing_cores == 1
    assert parsed("--distributed").found_by_jax
    slurm = parsed("", SLURM_STEP_NUM_TASKS="3")
    assert slurm.found_by_jax and slurm.processes == 3
    assert not parsed("", SLURM_STEP_NUM_TASKS="1").found_by_jax
    assert parsed("", TPU_WORKER_HOSTNAMES="a,b").found_by_jax
    assert not parsed("", TPU_WORKER_HOSTNAMES="localhost").found_by_jax


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--coordinator 127.0.0.1:1 --processes 2", "together"),
        ("--process 0", "together"),
        ("--coordinator a:1 --processes 2 --process 0 --distributed", "without --distributed"),
        ("--coordinator 127.0.0.1 --processes 2 --process 0", "must be HOST:PORT"),
        ("--coordinator a:1 --processes 2 --process 2", "must be from 0 to 1"),
        ("--coordinator a:1 --processes 2 --process -1", "must be from 0 to 1"),
        ("--heartbeat-timeout-s 0", "must be at least 1"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, line):
    with pytest.raises(UserError, match=line):
        parsed(flags)


# The roll call ------------------------------------------------------------------------------------


def called(*processes, limit_s=20):
    """What the roll call gives each (number, count, ...): its connections, or the error."""
    address = f"127.0.0.1:{free_port()}"
    host, port = address.split(":")

    def call(process, count, *heartbeat_timeout_s):
        try:
            listener = listen(host, int(port)) if process == 0 else None
            return rendezvous(listener, address, process, count, limit_s, *heartbeat_timeout_s)[0]
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(processes)) as threads:
        return list(threads.map(call, *zip(*processes, strict=True)))


@contextlib.contextmanager
def connected(count, heartbeat_timeout_s=30):
    """ProcessGroup of one run, all in this process."""
    connections = called(*((process, count) for process in range(count)))
    group = [
        ProcessGroup(index, count, connections[index], heartbeat_timeout_s=heartbeat_timeout_s)
        for index in range(count)
    ]
    with ThreadPoolExecutor(count) as threads:
        yield lambda function, *args: list(threads.map(function, group, *args))
        list(threads.map(ProcessGroup.part, group))
        for links in connections:
            for link in links.values():
                link.close()


def test_all_meet_in_any_order():
    assert [sorted(links) for links in called((2, 3), (0, 3), (1, 3))] == [[0], [1, 2], [0]]


def test_who_is_missing_comes_twice_or_was_started_otherwise_is_named():
    assert called((0, 3), (1, 3), limit_s=1) == ["process 2 of 3 did not come within 1 s"] * 2
    twice = called((0, 3), (1, 3), (1, 3))
    assert twice == ["two processes were started with --process 1"] * 3
    counts = called((0, 2), (1, 3))
    assert counts == ["process 1 was started with --processes 3, process 0 with 2"] * 2
    silence = called((0, 2, 30), (1, 2, 5))
    assert silence == ["process 1 was started with --heartbeat-timeout-s 5, process 0 with 30"] * 2
    (alone,) = called((1, 2), limit_s=1)
    assert "cannot reach process 0 at 127.0.0.1:" in alone


def test_port_in_use_and_a_coordinator_that_is_another_program_are_named():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at 127.0.0.1:{port}: Address already"):
            listen("127.0.0.1", port)
        with ThreadPoolExecutor(1) as threads:
            joining = threads.submit(rendezvous, None, f"127.0.0.1:{port}", 1, 2, 20)
            other.accept()[0].close()
            with pytest.raises(UserError, match="did not answer as glide_jax does"):
                joining.result()


# What they tell each other ------------------------------------------------------------------------


def test_each_hears_what_every_other_one_said():
    with connected(3) as joined:
        said = joined(lambda group: group.gather({"number": (group.index, "ö")}))
        assert said == [[{"number": [i, "ö"]} for i in range(3)]] * 3
    assert ProcessGroup().gather((1, 2)) == [[1, 2]]


def test_who_has_nothing_to_say_is_still_there():
    with connected(2, heartbeat_timeout_s=0.5) as joined:
        time.sleep(1.5)
        assert joined(lambda group: group.gather(group.index)) == [[0, 1]] * 2


@pytest.mark.parametrize(
    ("change", "images", "line"),
    [
        ({}, 8, None),
        ({"optim": {"learning_rate": 1.0}}, 8, "process 1 has optim.learning_rate 1.0, process 0"),
        ({"train": {"run_dir": "elsewhere"}}, 8, "process 1 has train.run_dir elsewhere"),
        ({}, 9, "process 1 sees 9 images, process 0 sees 8"),
    ],
)
def test_processes_that_were_started_otherwise_are_named(change, images, line):
    ours = theirs = get_config()
    for part, settings in change.items():
        theirs = replace(ours, **{part: replace(getattr(ours, part), **settings)})

    def check(group, config, count):
        try:
            return require_same(group, config, count)
        except UserError as error:
            return str(error)

    with connected(2) as joined:
        said = joined(check, (ours, theirs), (8, images))
    assert said[0] == said[1]
    assert said[0] is None if line is None else said[0].startswith(line)


def test_another_version_of_the_program_is_named(monkeypatch):
    numbers = iter("ab")
    monkeypatch.setattr("glide_jax.parallel.launch._source_digest", lambda: next(numbers))
    with connected(2) as joined, pytest.raises(UserError) as error:
        joined(lambda group: require_same(group, get_config(), 8))
    assert re.match("process 1 has another version of glide_jax than", str(error.value))


def test_a_run_folder_that_another_process_does_not_see_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(folder, "FILE_VISIBLE_S", 0)
    with pytest.raises(UserError, match="on storage that all processes share"):
        folder.require_shared(tmp_path, get_config())
    folder.Run.create(tmp_path, get_config(), Tokenizer.train(["a star"], 300))
    folder.require_shared(tmp_path, get_config())


MEMBER = """
import sys, time
from glide_jax.parallel.process_group import ProcessGroup
from glide_jax.parallel.rendezvous import listen, rendezvous
index, port, fails, slow_s = map(int, sys.argv[1:])
def last_step():
    time.sleep(slow_s)
    return 40
listener = listen("127.0.0.1", port) if index == 0 else None
connections = rendezvous(listener, f"127.0.0.1:{port}", index, 3, 20)[0]
group = ProcessGroup(index, 3, connections, last_step)
group.barrier()
print("here", flush=True)
if index == fails:
    group.fail("the disk is full", 2, "error: the disk is full\\n")
time.sleep(60)
"""


def members(fails, slow_s=0):
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER, *map(str, (index, port, fails, slow_s))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(3)
    ]
    for process in started:
        assert process.stdout.readline() == "here\n"
    return started


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_others_say_so_and_end(victim):
    started = members(fails=-1)
    started[victim].kill()
    line = f"process {victim} of 3 is gone; start all again: the run resumes from step 40"
    for index, process in enumerate(started):
        _, errors = process.communicate(timeout=20)
        if index != victim:
            assert (process.returncode, errors) == (GONE, f"error: {line}\n")


LISTENING = """
import socket, sys, time
from glide_jax.parallel.process_group import ProcessGroup
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    ProcessGroup(1, 2, {0: connection}, lambda: 40)
    time.sleep(60)
"""


@pytest.mark.parametrize("rest", [b'{"val', b'{"value": "\xc3'])
def test_who_is_killed_in_the_middle_of_a_line_is_gone(rest):
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-c", LISTENING, str(server.getsockname()[1])]
        listening = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"{}\n" + rest)
            connection.shutdown(socket.SHUT_WR)
            _, errors = listening.communicate(timeout=20)
    line = "process 0 of 2 is gone; start all again: the run resumes from step 40"
    assert (listening.returncode, errors) == (GONE, f"error: {line}\n")


@pytest.mark.slow
def test_nobody_waits_for_a_bucket_that_does_not_say_from_where_the_run_resumes():
    started = members(fails=-1, slow_s=60)
    started[1].kill()
    began = time.monotonic()
    for process in (started[0], started[2]):
        _, errors = process.communicate(timeout=20)
        line = "process 1 of 3 is gone; start all again: the run resumes from its last checkpoint"
        assert (process.returncode, errors) == (GONE, f"error: {line}\n")
    assert time.monotonic() - began < 10
    started[1].communicate()


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 2])
def test_when_one_fails_the_others_end_with_its_line(failing):
    for index, process in enumerate(members(failing)):
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 2
        if index != failing:
            assert errors == f"error: process {failing} of 3: the disk is full\n"


WAITING = """
import os, tyro
from glide_jax.parallel.launch import Launch, LaunchFlags, any_process, joined
with joined(Launch.of(tyro.cli(LaunchFlags), os.environ), lambda: 40) as group:
    group.barrier()
    print("here", flush=True)
    while True:
        any_process(False)
"""


def stopped(process, network):
    process.send_signal(signal.SIGSTOP)


def told_to_end_at_once(process, network):
    process.send_signal(signal.SIGTERM)


def killed(process, network):
    process.kill()


def cut_off(process, network):
    network.cut.set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "victim"),
    [(how, who) for how in (killed, told_to_end_at_once, stopped) for who in (0, 1)]
    + [(cut_off, 1)],
)
def test_a_process_that_is_lost_ends_the_others_in_the_middle_of_a_collective(lost, victim):
    network = Network(free_port())
    meeting = ["--processes", "2", "--heartbeat-timeout-s", "5", "--process"]
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                WAITING,
                f"--coordinator=127.0.0.1:{port}",
                *meeting,
                str(index),
            ],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, port in enumerate((network.lead_port, network.port))
    ]
    for process in started:
        assert process.stdout.readline() == "here\n"
    lost(started[victim], network)
    survivors = [0, 1] if lost is cut_off else [1 - victim]
    for index in survivors:
        _, errors = started[index].communicate(timeout=60)
        line = f"error: process {1 - index} of 2 is gone; start all again: the run resumes from"
        assert started[index].returncode == GONE, errors
        assert f"{line} step 40\n" in errors
    started[victim].kill()
    started[victim].communicate()


MEETING = """
import os
from glide_jax.parallel.launch import Launch, LaunchFlags, joined
with joined(Launch.of(LaunchFlags(), os.environ), lambda: None) as group:
    print(group.gather(os.environ["SLURM_PROCID"]))
"""


@pytest.mark.slow
def test_tasks_of_slurm_find_each_other():
    job = {"SLURM_JOB_ID": str(random.randrange(4096)), "SLURM_STEP_NODELIST": "localhost"}
    job |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", MEETING],
            env=os.environ
            | job
            | {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task), "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for task in range(2)
    ]
    for out, _ in finish_all(started):
        assert "['0', '1']" in out


# Whole runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start(train):
    """Starts a run's processes: `start(run_dir, count, devices of each, *flags)`."""

    def start(run_dir, count, devices, *flags):
        port = free_port()
        together = ("--coordinator", f"127.0.0.1:{port}", "--processes", count, "--process")
        return [
            train(
                run_dir,
                *SHORT.split(),
                *flags,
                *((*together, index) if count > 1 else ()),
                environment={"JAX_NUM_CPU_DEVICES": str(devices)},
            )
            for index in range(count)
        ]

    return start


def finish_all(started, status=0, limit_s=300):
    """What each process printed: on stdout, on stderr."""
    deadline = time.monotonic() + limit_s
    said = [process.communicate(timeout=deadline - time.monotonic()) for process in started]
    for process, (_, errors) in zip(started, said, strict=True):
        assert process.returncode == status, errors[-3000:]
    return said


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
    """A copy of a run as it was at a checkpoint."""
    shutil.copytree(run_dir, to)
    for path in (to / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)


@pytest.mark.slow
def test_bad_input_ends_every_process_with_one_line(start, color_folder, tmp_path):
    no_folder = color_folder / "red.png" / "run"
    shard = shard_name("all", 0, 1)
    for kind in ("missing", "cut"):
        (tmp_path / kind).mkdir()
        file = tmp_path / kind / shard
        write_records(file, [encode(image(0), ("an image",), "0.png")])
        splits = {"all": [Shard(shard, 1, file.stat().st_size)]}
        write_index(str(tmp_path / kind), splits, "of this test")
    (tmp_path / "missing" / shard).unlink()
    os.truncate(tmp_path / "cut" / shard, 500)
    shards = ("--data.source", "shards", "--data.path")
    bad = {
        f"{tmp_path}/missing/{shard} is missing, but": (tmp_path, *shards, tmp_path / "missing"),
        f"{tmp_path}/cut/{shard} has 500 bytes, but": (tmp_path, *shards, tmp_path / "cut"),
        "(9) must be divisible by": (tmp_path / "batch", "--train.batch-examples", 9),
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
    """A run of one process with one device that nothing disturbed."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    finish_all(start(run_dir, 1, 1))
    return run_dir


@pytest.fixture(scope="module")
def pair(start, tmp_path_factory):
    """The same of two processes with two devices each."""
    run_dir = tmp_path_factory.mktemp("pair") / "run"
    said = finish_all(start(run_dir, 2, 2, "--train.fsdp", 2))
    assert f"done: {STEPS} steps" in said[0][0]
    for word in ("step/s", "parameters", "done"):  # the lead speaks for both
        assert word not in "".join(said[1])
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


# Images and validation have to be compiled too.
QUIET = {"sample_every_steps": 0, "validate_every_steps": 0, "log_every_steps": 1}


@pytest.mark.slow
def test_two_processes_learn_what_one_does(alone, pair):
    assert_close(pair, alone)
    names = {path.name for path in pair.iterdir()}
    assert names == {"config.json", "tokenizer", "checkpoints", "samples", "metrics.jsonl"} | {
        "tensorboard"
    }
    assert [path.name for path in (pair / "samples").iterdir()] == [f"{STEPS:07d}.png"]


@pytest.mark.slow
def test_whatever_stops_two_processes_they_go_on_bit_for_bit(start, pair, tmp_path):
    flags = ("--train.fsdp", 2)
    saved = lambda step: (tmp_path / "checkpoints" / str(step)).is_dir  # noqa: E731
    # Asked to stop, whichever it is, both save first.
    started = start(tmp_path, 2, 2, *flags)
    log = tmp_path / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.read_text(), started[0])
    started[1].send_signal(signal.SIGTERM)
    said = finish_all(started)
    stopped = last_step(tmp_path)
    assert f"stopped at step {stopped} of {STEPS}" in said[0][0]
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
def test_one_process_goes_on_with_what_two_have_begun(start, pair, tmp_path):
    run_dir = tmp_path / "run"
    cut(pair, run_dir, 9)
    flip(data_file(run_dir, 9, "ema"), random.Random(0))  # so that it starts from step 6
    shorter = ("--train.steps", 8, "--train.validate-every-steps", 0)
    said = finish_all(start(run_dir, 1, 1, "--train.sample-every-steps", 0, *shorter))
    assert "9 is damaged" in said[0][1] and "resumed at step 6" in said[0][0]
    # That the state is the same bit for bit, its fingerprints have said.
    assert metrics(run_dir)[:6] == metrics(pair)[:6]
    assert_close(run_dir, pair, steps=range(1, 9))


@pytest.mark.slow
def test_four_processes_learn_what_one_does_from_the_start_and_go_on_with_what_two_have_begun(
    start_in_turn, alone, pair, tmp_path
):
    anew, further = tmp_path / "anew", tmp_path / "further"
    cut(pair, further, 9)
    flip(data_file(further, 9, "ema"), random.Random(0))
    config = changed(Config.load(pair / "config.json"), "train", fsdp=4, **QUIET)
    configs = {run: changed(config, "train", steps=n) for run, n in ((anew, 3), (further, 8))}
    said = finish_all(start_in_turn(4, configs))
    assert "9 is damaged" in said[0][1] and "resumed at step 6" in said[0][0]
    assert_close(anew, alone, steps=range(1, 4))
    assert metrics(further)[:6] == metrics(pair)[:6]
    assert_close(further, pair, steps=range(1, 9))


@pytest.mark.slow
def test_two_processes_learn_every_other_stage_as_one_does(start_in_turn, color_folder, tmp_path):
    enlarged = upsampler_config(inpaint=True)  # paints as well
    unet = replace(enlarged.model.unet, channel_mult=(1,))
    settings = QUIET | {"steps": 3}
    stages = {
        # It compares all images of a batch.
        "clip": on_colors(clip_config(), color_folder, **settings | {"validate_every_steps": 3}),
        "enlarged": on_colors(changed(enlarged, "model", unet=unet), color_folder, **settings),
    }
    for count in (1, 2):
        configs = {tmp_path / f"{name}{count}": config for name, config in stages.items()}
        finish_all(start_in_turn(count, configs))
    for name in stages:
        assert_close(tmp_path / f"{name}2", tmp_path / f"{name}1", steps=range(1, 4))


@pytest.mark.slow
def test_when_the_network_is_cut_while_they_train_both_sides_say_so(
    start_in_turn, color_folder, tmp_path
):
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
