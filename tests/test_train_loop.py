"""The training loop and its log, with a model that computes nothing."""

import dataclasses
import json
from unittest.mock import Mock

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from helpers.one_device import one_device_mesh

from glide_jax.data.loader import Loader
from glide_jax.runs.checkpoint import Checkpoints
from glide_jax.runs.folder import Run
from glide_jax.runs.paths import METRICS
from glide_jax.runs.state import TrainState
from glide_jax.train import Parts, loop
from glide_jax.training.logging import RunLog
from glide_jax.training.preview import Preview
from glide_jax.training.step import Trainer
from glide_jax.training.validation import Validator


@pytest.fixture
def train(tmp_path):
    """Trains with some settings; returns the lines of metrics.jsonl."""

    def step(state, batch):
        losses = {"loss": float(state.step), "skipped": 0.0, "skipped_in_a_row": 0.0}
        return dataclasses.replace(state, step=state.step + 1), losses

    def start(**settings):
        config = tiny.get_config()
        settings = dataclasses.replace(config.train, **settings)
        run = Run(tmp_path, dataclasses.replace(config, train=settings))
        vars(run)["tokenizer"] = Mock(truncated=0)
        counter = jnp.int32(0)
        state = TrainState(counter, {}, {}, (), counter, counter, None)
        batch = {"image": np.zeros((8, 8, 8, 3), np.float32)}
        loader = Mock(spec=Loader, __next__=lambda _: batch, bad_records=0)
        checkpoints = Mock(spec=Checkpoints, latest_step=None)
        trainer = Mock(spec=Trainer, step=step)
        losses = {"validation_loss": 0.25, "validation_loss_raw": 0.5}
        validator = Mock(spec=Validator, examples=7, return_value=losses)
        preview = Mock(spec=Preview)
        preview.sample.return_value = np.zeros((4, 6, 3), np.uint8)
        with RunLog(run) as log:
            models = run, one_device_mesh(), trainer, checkpoints, loader, validator, preview
            assert loop(Parts(*models, log), state) == settings.steps
        return [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]

    return start


def test_a_run_shorter_than_the_interval_logs_its_losses(train):
    (line,) = train(steps=4, log_every_steps=50)
    assert (line["step"], line["loss"]) == (4, 1.5)
    np.testing.assert_allclose(line["learning_rate"], 2e-3 * 3 / 10)  # of the fourth step


def test_the_terminal_shows_compilation_validation_and_samples(train, capsys, tmp_path):
    train(steps=6, log_every_steps=4, validate_every_steps=3, sample_every_steps=6)
    lines = capsys.readouterr().out.splitlines()
    shown = [line.partition(",")[0] for line in lines]
    assert shown == [
        "step 1: compiling",
        "step 1: compiled and computed in 0 s",
        "step 3: validating on 7 images",
        "step 3: validation: loss 0.2500 (raw 0.5000)",
        "step 4: loss 1.5000",
        "step 6: loss 4.5000",
        "step 6: validating on 7 images",
        "step 6: validation: loss 0.2500 (raw 0.5000)",
        "step 6: sampling",
        f"step 6: samples in {tmp_path / 'samples' / '0000006.png'}",
    ]
