"""How processes start, agree, and end together in the middle of a collective."""

import os
import random
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from helpers.broken_network import Network
from helpers.processes import connected, finish_all, free_port
from helpers.tiny import get_config

from glide_jax import UserError
from glide_jax.cli import parse_flags
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.parallel.launch import Launch, LaunchFlags, _located, joined, require_same
from glide_jax.parallel.process_group import GONE
from glide_jax.runs import folder


def parsed(text: str, **environment: str) -> Launch:
    return Launch.of(parse_flags(LaunchFlags, "train.py", text.split()), environment)


def test_flags_or_the_environment_describe_the_launch():
    assert parsed("") == Launch()
    launch = parsed("--coordinator 127.0.0.1:1234 --processes 4 --process 2")
    assert (launch.coordinator, launch.processes, launch.process) == ("127.0.0.1:1234", 4, 2)
    assert not launch.found_by_jax
    assert launch.sharing_cores == 4  # all on this machine, by the coordinator's address
    assert replace(launch, coordinator="10.0.0.1:1234").sharing_cores == 1
    assert parsed("--distributed").found_by_jax
    slurm = parsed("", SLURM_STEP_NUM_TASKS="3")
    assert slurm.found_by_jax and slurm.processes == 3
    assert not parsed("", SLURM_STEP_NUM_TASKS="1").found_by_jax
    with pytest.raises(UserError, match="SLURM_STEP_NUM_TASKS=two is not a number"):
        parsed("", SLURM_STEP_NUM_TASKS="two")
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
        ("--coordinator a:1 --processes 2 --process -1", "--process -1: must be at least 0"),
        ("--heartbeat-timeout-s 0", "must be at least 1"),
    ],
)
def test_contradicting_launch_flags_are_refused(flags, line):
    with pytest.raises(UserError, match=line):
        parsed(flags)


@pytest.mark.parametrize(
    ("change", "images", "line"),
    [
        ({}, 8, None),
        ({"optim": {"learning_rate": 1.0}}, 8, "process 1 has optim.learning_rate 1.0, process 0"),
        ({"train": {"run_dir": "elsewhere"}}, 8, "process 1 has train.run_dir elsewhere"),
        ({}, 9, "process 1 has data set size 9, process 0 has 8: start"),
    ],
)
def test_differently_started_processes_are_named(change, images, line):
    ours = theirs = get_config()
    for part, settings in change.items():
        theirs = replace(ours, **{part: replace(getattr(ours, part), **settings)})

    def check(group, config, count):
        try:
            return require_same(group, config, count)
        except UserError as error:
            return str(error)

    with connected(2) as call:
        results = call(check, (ours, theirs), (8, images))
    assert results[0] == results[1]
    assert results[0] is None if line is None else results[0].startswith(line)


def test_a_different_version_of_the_source_is_named(monkeypatch):
    numbers = iter("ab")
    monkeypatch.setattr("glide_jax.parallel.launch._source_digest", lambda: next(numbers))
    with connected(2) as call, pytest.raises(UserError) as error:
        call(lambda group: require_same(group, get_config(), 8))
    assert re.match(
        "process 1 has glide_jax source [ab], process 0 has [ab]: start all with", str(error.value)
    )


def test_a_run_folder_that_another_process_does_not_share_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(folder, "FILE_VISIBLE_S", 0)
    with pytest.raises(UserError, match="on storage that all processes share"):
        folder.require_shared(tmp_path, get_config())
    folder.Run.create(tmp_path, get_config(), Tokenizer.train(["a star"], 300))
    folder.require_shared(tmp_path, get_config())


def test_jax_listens_at_the_given_address_only(monkeypatch):
    given = []
    monkeypatch.setattr("jax.distributed.initialize", lambda **where: given.append(where))
    monkeypatch.setattr("jax.distributed.shutdown", lambda: None)
    address = f"127.0.0.1:{free_port()}"

    def call(process):
        with joined(Launch(address, 2, process), lambda: None) as group:
            return group.gather(process)

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(call, range(2))) == [[0, 1]] * 2
    for where in given:
        assert where["coordinator_address"] == where["coordinator_bind_address"] == address


def test_with_processes_found_by_jax_the_lead_listens_on_one_interface():
    launch, listener = _located(Launch("", 1, 0, True))
    assert listener is not None
    with listener:
        host, port = listener.getsockname()
        if host != "0.0.0.0":  # no default route
            assert launch.coordinator == f"{host}:{port}"


WAITING = """
import os, time, tyro
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from glide_jax.parallel.launch import Launch, LaunchFlags, joined
def last_step():
    time.sleep(1)  # as a bucket may
    return 40
with joined(Launch.of(tyro.cli(LaunchFlags), os.environ), last_step) as group:
    group.barrier()
    print("here", flush=True)
    while True:
        process_allgather(np.array(False))
"""


def stopped(process, network):
    process.send_signal(signal.SIGSTOP)


def terminated(process, network):
    process.send_signal(signal.SIGTERM)


def killed(process, network):
    process.kill()


def cut_off(process, network):
    network.cut.set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "victim"),
    [(how, who) for how in (killed, terminated, stopped) for who in (0, 1)] + [(cut_off, 1)],
)
def test_the_loss_of_a_process_ends_the_others_in_the_middle_of_a_collective(lost, victim):
    network = Network(free_port())
    launch = ["--processes", "2", "--heartbeat-timeout-s", "5", "--process"]
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                WAITING,
                f"--coordinator=127.0.0.1:{port}",
                *launch,
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
def test_slurm_tasks_find_each_other():
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
