"""Validation losses: what they are means of, and what captions they see."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from helpers import tiny
from test_reports import stand_in

from glide_jax.data.examples import Example
from glide_jax.data.records import Source
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.validation import validation_batches, with_other_captions, without_captions
from glide_jax.runs.folder import Run
from glide_jax.runs.state import TrainState
from glide_jax.training import validation
from glide_jax.training.objective import Validation
from glide_jax.training.step import Trainer
from glide_jax.training.validation import Validator

COLORS = ("red", "green", "blue", "black", "white", "gray")


def examples(captions):
    return [Example(np.full((8, 8, 3), i, np.uint8), c, None) for i, c in enumerate(captions)]


def test_every_image_gets_the_caption_of_another():
    own = examples(COLORS)
    other = with_other_captions(own)
    assert sorted(e.caption for e in other) == sorted(COLORS)
    for before, after in zip(own, other, strict=True):
        assert before.pixels is after.pixels
        assert before.caption != after.caption
    assert [e.caption for e in with_other_captions(own)] == [e.caption for e in other]
    assert {e.caption for e in without_captions(own)} == {""}


def losses(captions, monkeypatch, parts=("loss", "mse"), **settings):
    """Validation metrics of a model whose loss is the number of wrong tokens, and its calls."""
    config = tiny.get_config()
    train = {"validation_examples": 8, **settings}
    config = replace(config, train=replace(config.train, **train))
    found = examples(captions)
    monkeypatch.setattr(validation, "validation_examples", lambda *_, **__: found)
    tokenizer = Tokenizer.train(COLORS, vocab_size=300)
    right = next(iter(validation_batches(found, tokenizer, batch_of(config, len(captions)))))
    calls = []

    def validate(params, batch, k):
        calls.append(k)
        np.testing.assert_array_equal(batch["image"], right["image"])
        wrong = (np.asarray(batch["tokens"]) != right["tokens"]).any(1).astype(np.float32)
        wrong += 2 * (np.asarray(batch["token_mask"]).sum(1) == 0)
        return Validation(np.zeros(len(wrong), np.int32), {name: wrong + 1 for name in parts})

    trainer = stand_in(Trainer, validate=validate, timestep_count=1)
    run = stand_in(Run, config=config, tokenizer=tokenizer)
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), devices=jax.devices()[:1])
    validator = Validator.open(run, trainer, mesh, stand_in(Source))
    return validator(stand_in(TrainState, ema={}, params={})), len(calls)


def batch_of(config, examples):
    return replace(config, train=replace(config.train, batch_examples=examples))


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def test_other_captions_have_losses_of_their_own(monkeypatch):
    values, calls = losses(COLORS, monkeypatch)
    assert calls == 4
    assert (values["validation_loss"], values["validation_loss_raw"]) == (1, 1)
    assert values["validation_loss_shuffled_captions"] == 2
    assert values["validation_loss_no_captions"] >= 3
    # A CLIP's loss depends on the captions that it compares with: mse is what the model predicts.
    values, _ = losses(COLORS, monkeypatch, ("loss", "mse", "clip_loss"))
    assert values["validation_mse_shuffled_captions"] == 2
    assert "validation_loss_shuffled_captions" not in values


def test_captions_are_not_compared_where_all_are_equal_or_if_disabled(monkeypatch):
    for captions, settings in (
        (["red"] * 6, {}),
        ([""] * 6, {}),
        (COLORS, {"validate_captions": False}),
    ):
        values, calls = losses(captions, monkeypatch, **settings)
        assert calls == 2
        assert not any("captions" in name for name in values)
