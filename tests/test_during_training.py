"""Metrics of samples during training."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import model_set, tiny
from test_reports import stand_in

from glide_jax import UserError
from glide_jax.config import Folder
from glide_jax.data.sources import open_source
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.validation import validation_examples
from glide_jax.evaluation.during_training import TrainingEvaluation, extractor_of
from glide_jax.runs.folder import Run
from glide_jax.runs.state import TrainState
from glide_jax.sampling.stage import Stage
from glide_jax.training.logging import RunLog
from glide_jax.training.reports import report_evaluation


class Samples(list):
    """Arguments of the calls of a model, and the images that it samples."""

    images: np.ndarray

    def sample(self, prompts, seeds, settings, conditions):
        self.append((tuple(prompts), tuple(seeds), conditions))
        return self.images


@pytest.fixture
def sampled(monkeypatch):
    samples = Samples()
    monkeypatch.setattr(Stage, "__init__", lambda *_: None)
    monkeypatch.setattr(Stage, "use", lambda *_: None)
    monkeypatch.setattr(Stage, "sample", lambda _, *arguments: samples.sample(*arguments))
    return samples


def opened(folder, extractor, config, **settings):
    """The evaluation of a run on the eight colors, and their images."""
    data = replace(config.data, source=Folder(str(folder)))
    train = replace(config.train, evaluate_every_steps=2, **settings)
    config = replace(config, data=data, train=train)
    run = stand_in(Run, config=config, tokenizer=Tokenizer.train(model_set.CAPTIONS, 300))
    held_out = open_source(data, "all")
    examples = validation_examples(held_out, config, 8, full_size=True)
    images = np.stack([example.pixels for example in examples])
    return TrainingEvaluation(run, held_out, extractor), images


def test_metrics_are_of_the_same_captions_and_seeds_every_time(color_folder, efficientnet, sampled):
    settings = {"evaluate_examples": 6, "evaluate_metrics": ("kid", "precision_recall")}
    evaluate, images = opened(color_folder, efficientnet, tiny.get_config(), **settings)
    sampled.images = images[:6]
    log, state = stand_in(RunLog), stand_in(TrainState, step=4, ema={})
    same = report_evaluation(log, evaluate, state)
    sampled.images = np.full_like(images[:6], 128)
    gray = report_evaluation(log, evaluate, state)
    assert sampled[0] == sampled[1]
    prompts, seeds, conditions = sampled[0]
    assert (len(set(prompts)), seeds) == (6, (0, 1, 2, 3, 4, 5))
    assert conditions.low_res is None and conditions.known is None
    assert same["evaluation_precision"] == same["evaluation_recall"] == 1
    assert gray["evaluation_kid"] > same["evaluation_kid"]
    assert log.write.call_args_list[1].args == (4, gray)
    line = log.say.call_args.args[0]
    assert line.startswith("step 4: samples: KID (EfficientNet-Lite0) ")
    assert "recall (EfficientNet-Lite0) 0" in line


def test_an_inpainting_model_gets_the_known_pixels(color_folder, efficientnet, sampled):
    config = model_set.inpaint_config()
    evaluate, images = opened(color_folder, efficientnet, config, evaluate_examples=8)
    sampled.images = images
    evaluate({})
    np.testing.assert_array_equal(sampled[0][2].known.pixels, images)


def test_what_cannot_be_evaluated_is_one_line(color_folder, efficientnet, sampled):
    config = tiny.get_config()
    assert extractor_of(config) is None
    enabled = replace(config, train=replace(config.train, evaluate_every_steps=2))
    with pytest.raises(UserError, match=r"must be 0 for a CLIP"):
        extractor_of(replace(model_set.clip_config(), train=enabled.train))
    for metric, why in (("fid", "it is called fd"), ("bleu", "unknown metric 'bleu'")):
        train = replace(enabled.train, evaluate_metrics=(metric,))
        with pytest.raises(UserError, match=why):
            extractor_of(replace(config, train=train))
    evaluate, _ = opened(color_folder, efficientnet, config)
    sampled.sample = lambda *_: (_ for _ in ()).throw(UserError("samples are not finite"))
    log = stand_in(RunLog)
    assert report_evaluation(log, evaluate, stand_in(TrainState, step=4, ema={})) == {}
    log.say.assert_called_with("step 4: no evaluation: samples are not finite")
    log.write.assert_not_called()
