"""The loop of train.py: the order of its actions, with stand-ins for all that computes."""

import dataclasses
from types import SimpleNamespace
from unittest.mock import MagicMock

import jax.numpy as jnp
import pytest
from helpers import tiny
from jax.sharding import Mesh
from test_pending import Device
from test_reports import stand_in

from glide_jax.data.loader import Loader
from glide_jax.errors import UserError
from glide_jax.runs.checkpoint import Checkpoints
from glide_jax.runs.folder import Run
from glide_jax.runs.state import TrainState
from glide_jax.train import Parts, loop
from glide_jax.training.logging import RunLog
from glide_jax.training.step import Trainer
from glide_jax.training.stop import StopRequest
from glide_jax.training.validation import Validator


def run_loop(platform, bad_from=10**9, stop_after=10**9, best=(), **train):
    """The events of a run: dispatched, read, logged, saved and validated steps."""
    config = tiny.get_config()
    settings = {"checkpoint_every_steps": 10**6, "sample_every_steps": 0, "validate_every_steps": 0}
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, **settings | train)
    )
    events = []
    device = Device(events)

    def step(state, batch):
        step = state.step + 1
        metrics = device.dispatch(step)
        in_a_row = jnp.int32(max(step - bad_from + 1, 0))
        return stand_in(TrainState, step=step, ema={}), metrics | {
            "skipped": in_a_row,
            "skipped_in_a_row": in_a_row,
        }

    log = stand_in(RunLog)
    log.step.side_effect = lambda metrics, wait_s: events.append(f"log {metrics['loss']:.0f}")
    log.write_window.side_effect = lambda step, **values: events.append(f"window {step}")
    checkpoints = stand_in(Checkpoints, latest_step=None)
    checkpoints.kept.return_value = "has no checkpoint"
    checkpoints.is_best.side_effect = lambda step, values: step in best
    checkpoints.save.side_effect = lambda state, host: (
        events.append(f"save {state.step}"),
        setattr(checkpoints, "latest_step", state.step),
    )
    validator = stand_in(Validator, examples=8, return_value={"validation_loss": 1.0})
    validator.side_effect = lambda state: events.append(f"validate {state.step}") or {}
    stop = stand_in(StopRequest)
    stop.after.side_effect = lambda step: step >= stop_after
    loader = MagicMock(bad_records=0, __next__=lambda self: {})
    loader.__class__ = Loader
    mesh = stand_in(Mesh, devices=SimpleNamespace(flat=[SimpleNamespace(platform=platform)]))
    run = stand_in(Run, config=config, path="runs/x")
    run.tokenizer.truncated = 0

    def evaluate(params):
        events.append("evaluate")
        return {"evaluation_kid": 0.5}, "KID 0.5"

    trainer = stand_in(Trainer, step=step)
    parts = Parts(run, mesh, trainer, checkpoints, loader, validator, None, evaluate, log)
    try:
        loop(parts, stand_in(TrainState, step=0), stop)
    except UserError as error:
        events.append(str(error).partition(";")[0])
    return events


def test_an_accelerator_has_its_next_step_before_the_metrics_are_read():
    events = run_loop("gpu", steps=5, log_every_steps=2)
    assert events == [
        *("dispatch 1", "read 1", "log 1"),  # compiled
        *("dispatch 2",),
        *("dispatch 3", "read 2", "log 2", "window 2"),
        *("dispatch 4", "read 3", "log 3"),
        *("dispatch 5", "read 4", "read 5", "log 4", "window 4", "log 5", "window 5"),
        *("save 5",),
    ]


def test_a_checkpoint_and_a_validation_wait_for_all_metrics():
    flags = {"checkpoint_every_steps": 3, "validate_every_steps": 4, "log_every_steps": 10}
    events = run_loop("tpu", steps=9, stop_after=5, **flags)
    assert events[events.index("dispatch 3") :] == [
        *("dispatch 3", "read 2", "read 3", "log 2", "log 3", "save 3"),
        *("dispatch 4", "read 4", "log 4", "validate 4"),
        *("dispatch 5", "read 5", "log 5", "save 5"),  # the stop
    ]


def test_evaluations_follow_the_checkpoint_and_the_best_step_is_saved():
    flags = {"checkpoint_every_steps": 4, "evaluate_every_steps": 2, "validate_every_steps": 6}
    events = run_loop("gpu", steps=7, best=(2, 6), keep_checkpoint_every_steps=3, **flags)
    kept = [event for event in events if event.startswith(("save", "evaluate", "validate"))]
    assert kept == [
        *("evaluate", "save 2", "save 3", "save 4", "evaluate"),
        *("save 6", "validate 6", "evaluate", "save 6", "save 7"),
    ]


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_bad_steps_end_the_run_before_it_saves(platform):
    events = run_loop(platform, bad_from=3, max_bad_steps=2, checkpoint_every_steps=4, steps=9)
    assert events[-1].startswith("step 4: loss or gradient was not finite in 2 steps in a row")
    assert not any(event.startswith("save") for event in events)


def test_a_cpu_waits_for_every_step():
    events = run_loop("cpu", steps=2, log_every_steps=1)
    assert events == [
        *("dispatch 1", "wait 1", "read 1", "log 1", "window 1"),
        *("dispatch 2", "wait 2", "read 2", "log 2", "window 2"),
        *("save 2",),
    ]
