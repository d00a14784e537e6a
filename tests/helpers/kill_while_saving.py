"""Saves checkpoints in a loop, is killed at random times, and counts lost checkpoints.

    python -m tests.helpers.kill_while_saving FOLDER 50

A checkpoint is lost if it was complete before a kill and the next start does not restore it or a
newer one, or restores other values.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from glide_jax.runs.checkpoint import Checkpoints
from glide_jax.runs.paths import CHECKPOINTS
from glide_jax.runs.state import TrainState

SIZE = 300_000


def state_of(step: int) -> TrainState:
    numbers = np.random.default_rng(step).standard_normal(SIZE, np.float32)
    params = {"w": jnp.asarray(numbers), "b": jnp.arange(7) + jnp.float32(step)}
    opt_state = optax.adam(0.1, mu_dtype="bfloat16").init(params)
    return TrainState(
        step=jnp.int32(step),
        params=params,
        ema=params,
        opt_state=jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), opt_state),
        skipped=jnp.int32(0),
        skipped_in_a_row=jnp.int32(0),
        history=None,
    )


def save_until_killed(run_dir: Path, known: int, report) -> None:
    """Restores a checkpoint, reports whether one was lost, then saves step after step."""
    checkpoints = Checkpoints(run_dir, max_checkpoints=2)
    step = 0
    if known or checkpoints.latest_step is not None:
        like = state_of(0)
        state, host_state = checkpoints.restore(like, jax.tree.map(lambda x: x.sharding, like))
        step = int(state.step)
        equal = jax.tree.map(np.array_equal, state, state_of(step))
        intact = all(jax.tree.leaves(equal)) and host_state["step"] == step and step >= known
        report.write(f"restored {step if intact else -1}\n")
    while True:
        step += 1
        checkpoints.save(state_of(step), {"step": step, "loader": {}, "log": {}})
        report.write(f"complete {step - 1}\n")  # a save waits for the previous one


def main(run_dir: Path, kills: int) -> None:
    rng = random.Random(0)
    (run_dir / CHECKPOINTS).mkdir(parents=True)
    known, lost, interrupted = 0, 0, 0
    for _ in range(kills + 1):
        read, write = os.pipe()
        pid = os.fork()  # a fork has the modules already
        if pid == 0:
            with os.fdopen(write, "w", buffering=1) as report:
                save_until_killed(run_dir, known, report)
        os.close(write)
        with os.fdopen(read) as report:
            first = report.readline()  # wait until it saves
            time.sleep(rng.uniform(0, 0.6))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            lines = [first or "restored -1", *report]
        interrupted += any("tmp" in path.name for path in (run_dir / CHECKPOINTS).iterdir())
        for kind, step in (line.split() for line in lines):
            if kind == "restored":
                lost += int(step) < 0
            known = max(known, int(step))
    print(f"{kills} kills, {interrupted} of them in the middle of a write, {lost} lost")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
